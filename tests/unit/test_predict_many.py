"""Catalogue rows 60 and 62, and going on: what a command predicts is kept part by part."""

from __future__ import annotations

import csv
import json
import os
import sys
import tracemalloc

import pandas as pd
import pytest
from small_models import CLASSES, draw, make_run

from dermalyze import SkinLesionPredictor
from dermalyze.config import plain
from dermalyze.errors import ConfigError, DataError
from dermalyze.files import spreadsheet_cell
from dermalyze.prediction import many, tables
from dermalyze.prediction.many import predict_many
from dermalyze.prediction.parts import Parts
from dermalyze.prediction.ways import defaults
from dermalyze.schema import Prediction, checked
from dermalyze.tracking.run_lock import RunInUseError, run_lock

IMAGES = 11


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run", seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(IMAGES - 2):
        draw(folder / f"{number}.png", number)
    (folder / "bad.png").write_bytes(b"no picture")
    draw(folder / "=1+1.png", 99)
    return folder


def config(run, folder, output, **changes):
    values = {"checkpoint": str(run), "images": str(folder), "device": "cpu"}
    return {
        **defaults(),
        **values,
        "output": str(output),
        "part_size": 3,
        "batch_size": 2,
        **changes,
    }


@pytest.fixture(scope="module")
def whole(run, folder, tmp_path_factory):
    """The file of each ending, made without a break."""
    start = tmp_path_factory.mktemp("whole")
    for ending in ("csv", "json", "parquet"):
        tally = predict_many(config(run, folder, start / f"p.{ending}"))
        assert (tally.images, tally.failures) == (IMAGES, 1)
        assert "bad.png: neither JPEG" in tally.first_error
    assert {path.name for path in start.iterdir()} == {"p.csv", "p.json", "p.parquet"}
    return start


def test_the_defaults_of_the_interface_are_those_of_the_command(run, folder, tmp_path):
    from omegaconf import OmegaConf

    cfg = OmegaConf.create(config(run, folder, tmp_path / "p.csv"))
    assert checked(cfg, Prediction) == plain(cfg)


def test_every_format_says_what_the_interface_says_in_the_order_of_names(run, folder, whole):
    names = sorted(path.name for path in folder.iterdir())
    results = list(
        SkinLesionPredictor(run, device="cpu").predict_batch([folder / name for name in names], 2)
    )
    records = json.loads((whole / "p.json").read_text())
    with (whole / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    frame = pd.read_parquet(whole / "p.parquet")
    for name, result, record, row, (_, line) in zip(
        names, results, records, rows, frame.iterrows(), strict=True
    ):
        assert (record["image"], line["image"], row["image"]) == (
            name,
            name,
            f"'{name}" if name == "=1+1.png" else name,
        )
        if "error" in result:
            assert record["error"] == row["error"] == line["error"] == result.error
            assert row["confidence"] == row["predicted_class"] == ""
            assert pd.isna(line["confidence"])
            continue
        assert pd.isna(line["error"])
        assert row["error"] == ""
        assert record["predicted_class"] == row["predicted_class"] == result.predicted_class
        assert list(record["probabilities"]) == list(CLASSES)
        for code, probability in result.probabilities.items():
            column = f"probability_{code}"
            for value in (record["probabilities"][code], float(row[column]), line[column]):
                assert value == pytest.approx(probability, abs=1e-6)
        for key, value in result.uncertainty.items():
            for found in (record["uncertainty"][key], float(row[key]), line[key]):
                assert found == pytest.approx(value, abs=1e-6)
    assert {row["disclaimer"] for row in rows} == {results[0].disclaimer}


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
@pytest.mark.parametrize("parts_done", [0, 2, 4])
def test_going_on_ends_in_the_same_bytes(
    run, folder, whole, tmp_path, monkeypatch, ending, parts_done
):
    output = tmp_path / f"p.{ending}"
    kept = Parts.keep

    def broken_off(self, number, records):
        if number == parts_done or parts_done == 4:
            if parts_done == 4 and number < 3:
                kept(self, number, records)
                return
            raise KeyboardInterrupt
        kept(self, number, records)

    if parts_done < 4:
        monkeypatch.setattr(Parts, "keep", broken_off)
    else:  # all parts are there, and the file is being written

        def breaks(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(many, "write_table", breaks)
    with pytest.raises(KeyboardInterrupt):
        predict_many(config(run, folder, output))
    monkeypatch.undo()
    assert not output.exists()
    assert len(list((tmp_path / f"p.{ending}.parts").glob("0*.jsonl"))) == parts_done
    predicted = []
    judged = many.Panel.results

    def counted(self, *args):
        for batch in judged(self, *args):
            predicted.extend(batch)
            yield batch

    monkeypatch.setattr(many.Panel, "results", counted)
    tally = predict_many(config(run, folder, output))
    assert (tally.images, tally.failures) == (IMAGES, 1)
    assert len(predicted) == max(0, IMAGES - 3 * parts_done)
    assert output.read_bytes() == (whole / output.name).read_bytes()
    assert list(tmp_path.iterdir()) == [output]


def started(run, folder, output, monkeypatch, **changes):
    """Begin, and break off after a part."""
    kept = Parts.keep

    def once(self, number, records):
        kept(self, number, records)
        raise KeyboardInterrupt

    monkeypatch.setattr(Parts, "keep", once)
    with pytest.raises(KeyboardInterrupt):
        predict_many(config(run, folder, output, **changes))
    monkeypatch.undo()


def test_the_images_are_those_of_the_start(run, tmp_path, monkeypatch):
    folder, output = tmp_path / "pictures", tmp_path / "p.json"
    folder.mkdir()
    for number in range(5):
        draw(folder / f"{number}.png", number)
    started(run, folder, output, monkeypatch)
    draw(folder / "0 comes before.png", 9)
    (folder / "4.png").unlink()
    tally = predict_many(config(run, folder, output))
    records = json.loads(output.read_text())
    assert [record["image"] for record in records] == [f"{number}.png" for number in range(5)]
    assert (tally.images, tally.failures) == (5, 1)
    assert "4.png: cannot be opened" in records[4]["error"]


def test_parts_that_were_predicted_otherwise_are_not_mixed(run, folder, tmp_path, monkeypatch):
    output = tmp_path / "p.csv"
    started(run, folder, output, monkeypatch)
    with pytest.raises(ConfigError, match=r"(?s)batch_size: 2 -> 4.*set_method: lac -> aps"):
        predict_many(config(run, folder, output, batch_size=4, set_method="aps"))
    other = make_run(tmp_path / "other", seed=2)
    with pytest.raises(ConfigError, match=r"models: \['[0-9a-f]{64}'\] -> "):
        predict_many(config(other, folder, output))
    with (
        run_lock(tmp_path / "p.csv.parts"),
        pytest.raises(RunInUseError, match="is working in this folder"),
    ):
        predict_many(config(run, folder, output))
    (tmp_path / "p.csv.parts" / "about.json").write_text("{")
    with pytest.raises(DataError, match=r"Remove .*p\.csv\.parts to start anew"):
        predict_many(config(run, folder, output))


def test_parts_of_another_list_are_not_mixed(run, folder, tmp_path, monkeypatch):
    table, output = tmp_path / "images.csv", tmp_path / "p.csv"
    table.write_text("path,age\n" + "".join(f"{folder}/{n}.png,{n + 40}\n" for n in range(7)))
    started(run, table, output, monkeypatch)
    table.write_text(table.read_text().replace(",41", ",14"))
    with pytest.raises(ConfigError, match=r"holds parts .*\n  - table: [0-9a-f]{64} -> "):
        predict_many(config(run, table, output))
    output.with_name("p.csv.parts").rename(tmp_path / "q.csv.parts")
    for name in ("here", "there"):
        (tmp_path / name / "pictures").mkdir(parents=True)
        for number in range(4):
            draw(tmp_path / name / "pictures" / f"{number}.png", number)
    monkeypatch.chdir(tmp_path / "here")
    started(run, "pictures", output, monkeypatch)
    monkeypatch.chdir(tmp_path / "there")
    with pytest.raises(ConfigError, match=r"given: \S+here/pictures -> \S+there/pictures"):
        predict_many(config(run, "pictures", output))
    tally = predict_many(config(run, "../here/pictures", output))  # the same, called otherwise
    assert (tally.images, tally.failures) == (4, 0)


def test_a_file_that_came_in_between_is_not_written_over(run, folder, tmp_path, monkeypatch):
    output = tmp_path / "p.csv"
    monkeypatch.setattr(many, "_fill", lambda *args: output.write_text("mine"))
    with pytest.raises(ConfigError, match="is there already"):
        predict_many(config(run, folder, output))
    assert output.read_text() == "mine"
    assert (tmp_path / "p.csv.parts").is_dir()
    monkeypatch.undo()
    output.unlink()
    assert predict_many(config(run, folder, output)).images == IMAGES


def test_nothing_is_written_over_and_nothing_left_of_what_cannot_begin(run, tmp_path):
    mine = tmp_path / "p.csv"
    mine.write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        predict_many(config(run, tmp_path, mine))
    assert mine.read_text() == "mine"
    with pytest.raises(ConfigError, match=r"output=p\.txt: the ending says the format"):
        predict_many(config(run, tmp_path, "p.txt"))
    with pytest.raises(DataError, match="no file that ends in"):
        predict_many(config(run, tmp_path, tmp_path / "new" / "q.csv"))
    assert {path.name for path in tmp_path.rglob("*")} == {"p.csv", "new"}
    (tmp_path / "a file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        predict_many(config(run, tmp_path, tmp_path / "a file" / "q.csv"))


def test_on_the_screen_each_image_is_a_line(run, folder, capsys):
    tally = predict_many({**config(run, folder, ""), "output": None})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == tally.images == IMAGES
    assert lines[-1].startswith("bad.png: no prediction: ")
    result = SkinLesionPredictor(run).predict(folder / "0.png")
    first = f"0.png: {result.predicted_class} {result.confidence:.4f}"
    (line,) = (line for line in lines if line.startswith("0.png"))
    assert line.startswith(first)
    assert all(f"{code} {value:.4f}" in line for code, value in result.probabilities.items())


def test_who_reads_some_lines_only_ends_it_quietly(run, folder, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        tally = predict_many({**config(run, folder, ""), "output": None})
        print("more", flush=True)  # goes nowhere
    assert tally.images == 1


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@A1", "\t=1", "\r=1", "\n=1"])
def test_a_formula_is_made_text(text):
    assert spreadsheet_cell(text) == "'" + text
    assert spreadsheet_cell(f"a{text}") == f"a{text}"


def test_a_name_that_is_a_formula_is_one_nowhere(tmp_path):
    names = ['=HYPERLINK("http://a","b")', "-1", "<script>", 'a"b,c', "a\nb"]
    records = [{"image": name, "error": f"{name}: bad"} for name in names]
    for ending in ("csv", "json", "parquet"):
        tables.write_table(tmp_path / f"t.{ending}", [records[:2], records[2:]], CLASSES)
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    safe = [f"'{name}" if name[0] in "=-" else name for name in names]
    assert [row["image"] for row in rows] == safe
    assert [row["error"] for row in rows] == [f"{name}: bad" for name in safe]
    assert json.loads((tmp_path / "t.json").read_text()) == records
    assert pd.read_parquet(tmp_path / "t.parquet")["image"].tolist() == names


@pytest.mark.thorough
def test_memory_does_not_grow_with_the_number_of_files(run, tmp_path):
    """Ten times the files, the same peak; each way through everything that a command keeps."""

    def peak(images: int) -> int:
        folder = tmp_path / f"{images}"
        folder.mkdir()
        picture = draw(tmp_path / "p.png", 1).read_bytes()
        for number in range(images):
            (folder / f"a picture with a name of some length {number:06d}.png").write_bytes(picture)
        tracemalloc.start()
        predict_many(config(run, folder, tmp_path / f"{images}.csv", part_size=64, batch_size=16))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(20)  # what is made once
    few, many_more = peak(400), peak(4000)
    # What is left to grow are the names of one folder while they are put in order: 3,600 of them.
    assert many_more - few < 3600 * 400
    assert many_more < 1.5 * few


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")
def test_a_failure_is_written_whose_name_is_no_text(run, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    with open(os.fsencode(folder) + b"/bad\xff.jpg", "wb") as file:  # noqa: PTH123 - of bytes
        file.write(b"hello")
    read = {".csv": pd.read_csv, ".json": pd.read_json, ".parquet": pd.read_parquet}
    for ending, reader in read.items():
        output = tmp_path / f"p{ending}"
        assert predict_many(config(run, folder, output)).failures == 1
        row = reader(output).iloc[0]
        assert row["image"] == "bad\\xff.jpg"
        assert row["error"].startswith(f"{folder}/bad\\xff.jpg: neither JPEG, PNG, BMP nor WebP")


def test_classes_in_tables_are_no_formulas_and_are_told_apart(tmp_path):
    classes = ("=1+1", "basal cell", "nv")
    record = {"image": "a.jpg", "predicted_class": "=1+1", "prediction_set": ("=1+1", "basal cell")}
    tables.write_table(tmp_path / "p.csv", [[record]], classes)
    with (tmp_path / "p.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["predicted_class"] == "'=1+1"
    assert row["prediction_set"] == "'=1+1; basal cell"

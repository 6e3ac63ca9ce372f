"""Runs side by side: numbers by hand, the same draws for all, and what cannot be compared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from dermalyze import comparison
from dermalyze.checkpoint_file import BEST, write_checkpoint
from dermalyze.comparison import ALL, TRAINED, Compared, Result, compare, write_comparison
from dermalyze.errors import ConfigError, DataError
from dermalyze.evaluation.intervals import interval, lesion_weights, metric_draws
from dermalyze.evaluation.metrics import METRICS, confusion, summary_metrics
from dermalyze.taxonomy import DISCLAIMER

CLASSES = ("bkl", "mel", "nv")
HISTORY = [
    {"epoch": epoch, "train/loss": 2.0 / epoch, "train/accuracy": 0.75, "lr": 0.1}
    | {"val/loss": loss, "val/accuracy": 0.625, "val/balanced_accuracy": 0.5, "val/macro_auc": None}
    for epoch, loss in ((1, 2.0), (2, 1.0), (3, 1.5))
]
IMAGES = 90


def table(images: int = IMAGES) -> pd.DataFrame:
    """Images of which each second shares its lesion with the one before."""
    rng = np.random.default_rng(0)
    lesion = np.arange(images) // 2
    dx = np.array(CLASSES)[rng.integers(3, size=len(lesion))[lesion]]
    ids = [f"00{n:03d}" for n in range(images)]  # text that looks like numbers
    return pd.DataFrame({"image_id": ids, "lesion_id": [f"L{n}" for n in lesion], "dx": dx})


def probabilities(frame: pd.DataFrame, seed: int, skill: float) -> np.ndarray:
    truth_NK = np.eye(3)[pd.Index(CLASSES).get_indexer(pd.Index(frame["dx"]))]
    scores_NK = np.random.default_rng(seed).normal(size=truth_NK.shape) + skill * truth_NK
    return np.exp(scores_NK) / np.exp(scores_NK).sum(axis=1, keepdims=True)


def a_run(
    folder: Path,
    frame: pd.DataFrame,
    probs_NK: np.ndarray,
    *,
    trained: tuple[str, ...] = ("L900",),
    classes: tuple[str, ...] = CLASSES,
    seed: int = 7,
    **settings: Any,
) -> str:
    """A run's folder with what `evaluate` and `train` leave there, as far as it is read."""
    evaluation = folder / "evaluation" / "test"
    evaluation.mkdir(parents=True)
    training = {"seed": seed, "monitor": "val/loss", "min_delta": 0.0}
    config = {"training": training, "optimizer": {"name": folder.name}, **settings}
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    (folder / "training_history.json").write_text(json.dumps(HISTORY))
    predicted = [classes[k] for k in probs_NK.argmax(axis=1)]
    columns = {f"probability_{code}": probs_NK[:, k] for k, code in enumerate(classes)}
    predictions = frame.assign(predicted=predicted, **columns, disclaimer=DISCLAIMER)
    predictions.to_csv(evaluation / "predictions.csv", index=False)
    labels_N = pd.Index(classes).get_indexer(pd.Index(frame["dx"]))
    report = {
        "metrics": summary_metrics(labels_N, probs_NK),
        "confusion_matrix": {
            "classes": list(classes),
            "counts": confusion(labels_N, probs_NK).tolist(),
        },
    }
    (evaluation / "evaluation_metrics.json").write_text(json.dumps(report))
    for part in ("train", "val", "test"):
        rows = [f"{part}_{lesion},{lesion},nv\n" for lesion in trained if part == "train"]
        (folder / f"{part}_split.csv").write_text("image_id,lesion_id,dx\n" + "".join(rows))
    return str(folder)


FRAME = table()
PROBS = {name: probabilities(FRAME, seed, 1.5) for seed, name in enumerate("ABC")}


def asked(*runs: str, **changed: Any) -> dict[str, Any]:
    return {
        "runs": list(runs), "baseline": None, "group_seeds": False,
        "split": "test", "level": 0.95, "draws": 200, "seed": 1,
    } | changed  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    return [a_run(tmp_path / name, FRAME, probs_NK) for name, probs_NK in PROBS.items()]


def the(found: Compared, metric: str, run: str, minus: str | None = None, images: str = ALL) -> Any:
    chosen = [
        result
        for result in found.results
        if (result.metric, result.group, result.minus, result.images)
        == (metric, run, minus, images)
    ]
    (result,) = chosen
    return result


def test_each_result_is_the_metric_with_the_interval_of_its_draws(runs: list[str]) -> None:
    found = compare(asked(*runs))
    labels_N = pd.Index(CLASSES).get_indexer(pd.Index(FRAME["dx"]))
    weights_DN = lesion_weights(FRAME["lesion_id"], draws=200, seed=1)
    values = {
        run: summary_metrics(labels_N, p) for run, p in zip(runs, PROBS.values(), strict=True)
    }
    draws = {
        run: metric_draws(labels_N, p, weights_DN)
        for run, p in zip(runs, PROBS.values(), strict=True)
    }
    assert len(found.results) == len(METRICS) * (3 + 3)
    assert [(scope.name, scope.images, scope.lesions) for scope in found.scopes] == [(ALL, 90, 45)]
    assert found.trained_on == dict.fromkeys(runs, 0)
    a, b, c = runs
    for metric in METRICS:
        expected = interval(draws[a][metric], level=0.95)
        assert expected is not None
        result = the(found, metric, a)
        assert result.value == pytest.approx(values[a][metric], abs=1e-12)
        assert (result.low, result.high, result.draws) == pytest.approx(expected, abs=1e-12)
        # The later run minus the earlier, on the same draws.
        for run, minus in ((b, a), (c, a), (c, b)):
            expected = interval(draws[run][metric] - draws[minus][metric], level=0.95)
            assert expected is not None
            result = the(found, metric, run, minus)
            assert result.value == pytest.approx(
                values[run][metric] - values[minus][metric], abs=1e-12
            )
            assert (result.low, result.high) == pytest.approx(expected[:2], abs=1e-12)


def test_the_order_of_the_rows_has_no_say(runs: list[str], tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(IMAGES)
    shuffled = a_run(tmp_path / "other", FRAME.iloc[order], PROBS["B"][order])
    one, other = compare(asked(runs[0], runs[1])), compare(asked(runs[0], shuffled))
    for result, again in zip(one.results, other.results, strict=True):
        assert (again.value, again.low, again.high) == pytest.approx(
            (result.value, result.low, result.high), abs=1e-12
        )
    assert [test.p for test in one.tests] == [test.p for test in other.tests]


def test_mcnemar_and_holm_by_hand(tmp_path: Path) -> None:
    # Ten images of ten lesions, all nv. A is right on all, B on 4 (0 : 6 against A), C on none.
    frame = pd.DataFrame({"image_id": [*"abcdefghij"], "lesion_id": [*"abcdefghij"], "dx": "nv"})
    right, wrong = [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]
    counts = {"A": 10, "B": 4, "C": 0}
    runs = [
        a_run(tmp_path / name, frame, np.array([right] * n + [wrong] * (10 - n)))
        for name, n in counts.items()
    ]
    found = compare(asked(*runs))
    names = [(Path(test.minus_run).name, Path(test.run).name) for test in found.tests]
    assert names == [("A", "B"), ("A", "C"), ("B", "C")]
    alone = [(test.only_minus_right, test.only_run_right) for test in found.tests]
    assert alone == [(6, 0), (10, 0), (4, 0)]
    # 2 / 2^6, 2 / 2^10, 2 / 2^4; times 2, 3 and 1.
    assert [test.p for test in found.tests] == pytest.approx([1 / 32, 1 / 512, 1 / 8])
    assert [test.p_holm for test in found.tests] == pytest.approx([1 / 16, 3 / 512, 1 / 8])
    # One class only: there is no ROC curve, in no draw.
    auc = the(found, "macro_auc", runs[0])
    nothing = (None, None, None, 0, None, None, None, None)
    assert auc == Result(ALL, runs[0], None, "macro_auc", *nothing)


def test_images_of_trained_lesions_are_shown_on_their_own(tmp_path: Path) -> None:
    honest = a_run(tmp_path / "honest", FRAME, PROBS["A"])
    leaky = a_run(tmp_path / "leaky", FRAME, PROBS["B"], trained=("L3", "L7", "L900"))
    found = compare(asked(honest, leaky))
    assert found.trained_on == {honest: 0, leaky: 4}
    assert [(scope.name, scope.images, scope.lesions) for scope in found.scopes] == [
        (ALL, 90, 45),
        (TRAINED, 4, 2),
    ]
    rows = FRAME["lesion_id"].isin(["L3", "L7"]).to_numpy()
    labels_N = pd.Index(CLASSES).get_indexer(pd.Index(FRAME["dx"]))[rows]
    expected = [summary_metrics(labels_N, PROBS[name][rows])["accuracy"] for name in "AB"]
    assert the(found, "accuracy", leaky, images=TRAINED).value == pytest.approx(expected[1])
    difference = the(found, "accuracy", leaky, honest, images=TRAINED)
    assert difference.value == pytest.approx(expected[1] - expected[0])


def test_what_is_written_is_what_was_found(runs: list[str], tmp_path: Path) -> None:
    found = compare(asked(*runs[:2]))
    folder = write_comparison(found, str(tmp_path / "deep" / "result"))
    report = json.loads((folder / "comparison.json").read_text())
    assert report["disclaimer"] == DISCLAIMER
    assert (report["split"], report["level"], report["draws"], report["seed"]) == (
        "test", 0.95, 200, 1,
    )  # fmt: skip
    assert [Result(**row) for row in report["results"]] == found.results
    assert report["tests"][0]["p"] == found.tests[0].p
    written = pd.read_csv(folder / "comparison.csv", keep_default_na=False)
    assert len(written) == len(found.results) == 3 * len(METRICS)
    assert set(written["disclaimer"]) == {DISCLAIMER}
    row = written[(written["metric"] == "macro_f1") & (written["minus"] == runs[0])].iloc[0]
    result = the(found, "macro_f1", runs[1], runs[0])
    assert (row["group"], row["value"], row["low"]) == (
        runs[1],
        pytest.approx(result.value),
        pytest.approx(result.low),
    )


# What cannot be compared


def refusal(*runs: str) -> str:
    with pytest.raises(DataError) as caught:
        compare(asked(*runs))
    return str(caught.value)


def test_an_earlier_comparison_is_said_to_be_replaced(
    runs: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO")
    for slow in ("save_figure", "write_comparison_page"):
        monkeypatch.setattr(comparison, slow, lambda *drawn: None)
    found, output = compare(asked(*runs[:2], draws=2)), tmp_path / "both"
    write_comparison(found, str(output))
    assert caplog.messages == []
    drawn = [output / "differences.png", output / "own.png"]
    for picture in drawn:
        picture.touch()
    write_comparison(found, str(output))
    assert [picture.exists() for picture in drawn] == [False, True]
    assert caplog.messages == [
        f"replaced the comparison that {output} held; output=FOLDER keeps both"
    ]


def test_runs_that_are_not_evaluated_say_what_to_run(runs: list[str], tmp_path: Path) -> None:
    (tmp_path / "A/evaluation/test/predictions.csv").unlink()
    (tmp_path / "C/evaluation/test/evaluation_metrics.json").unlink()
    assert refusal(*runs) == (
        "not evaluated on split=test, so there are no predictions.csv and evaluation_metrics.json "
        f"in evaluation/test: {tmp_path}/A, {tmp_path}/C. Evaluate first: python -m "
        f"dermalyze.evaluate -m checkpoint={tmp_path}/A,{tmp_path}/C split=test"
    )


MODEL = {"epoch": 3, "seed": 7, "split_fingerprint": "f", "validation_metrics": {"val/loss": 0.5}}


def told_of(run: Path, member: dict[str, Any]) -> None:
    """Let the run's evaluation say of which model it is."""
    path = run / "evaluation" / "test" / "evaluation_metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"members": [member]}))


def test_an_evaluation_of_an_earlier_checkpoint_is_refused(runs: list[str]) -> None:
    run = Path(runs[1])
    said = (
        f"what evaluation/test holds is of another model than the run's {BEST} is now: {run}. "
        f"Evaluate again: python -m dermalyze.evaluate checkpoint={run} split=test"
    )
    told_of(run, MODEL)
    compare(asked(*runs, draws=2))  # there is no checkpoint to be held against
    other_weights = {**MODEL, "validation_metrics": {"val/loss": 0.25}}
    for now in ({**MODEL, "epoch": 4}, other_weights):
        write_checkpoint(run / BEST, {}, now)
        assert refusal(*runs) == said
    told_of(run, {"epoch": 3, "seed": 7})  # as an earlier version says it
    compare(asked(*runs, draws=2))
    told_of(run, {"epoch": 2, "seed": 7})
    assert refusal(*runs) == said


def test_other_images_are_named_five_each_way(runs: list[str], tmp_path: Path) -> None:
    changed = FRAME.copy()
    changed.loc[:6, "image_id"] = [f"X{n}" for n in range(7)]
    other = a_run(tmp_path / "other", changed, PROBS["B"])
    message = refusal(runs[0], other)
    assert f"7 images in {runs[0]} only: 00000, 00001, 00002, 00003, 00004 and 2 more" in message
    assert f"7 images in {other} only: X0, X1, X2, X3, X4 and 2 more" in message
    assert "data/split=from_files" in message


@pytest.mark.parametrize("column", ["dx", "lesion_id"])
def test_another_label_or_lesion_is_named(column: str, runs: list[str], tmp_path: Path) -> None:
    changed = FRAME.copy()
    changed.loc[3, column] = "L99" if column == "lesion_id" else "nv"
    assert FRAME.loc[3, column] != changed.loc[3, column]
    other = a_run(tmp_path / "other", changed, PROBS["B"])
    assert "1 images have another dx or lesion: 00003" in refusal(runs[0], other)


def test_other_classes_are_named(runs: list[str], tmp_path: Path) -> None:
    other = a_run(tmp_path / "other", FRAME, PROBS["B"], classes=("nv", "mel", "bkl"))
    assert "classes bkl, mel, nv and nv, mel, bkl" in refusal(runs[0], other)


def test_one_run_twice(runs: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"names \S+/A more than once"):
        compare(asked(runs[0], f"{runs[0]}/../A"))


def test_a_run_whose_training_part_is_lost_is_not_taken_for_honest(
    runs: list[str], tmp_path: Path
) -> None:
    (tmp_path / "B/train_split.csv").unlink()
    message = refusal(*runs)
    assert "B: what it was trained on cannot be read, so leakage would go unseen" in message
    assert "train_split.csv: cannot be read: No such file" in message


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new", "why"),
    [
        ("predictions.csv", "probability_mel", "probability_mal", "are not those of an evaluation"),
        ("predictions.csv", "00004,", "00005,", "00005 is listed twice"),
        ("predictions.csv", ",L1,", ",L1,x", "is none of the classes"),
        ("evaluation_metrics.json", '"accuracy": 0.', '"accuracy": 0.0', "has other metrics"),
        ("evaluation_metrics.json", "{", "[", "are not those of an evaluation"),
    ],
)
def test_files_that_were_changed_are_refused(
    file: str, old: str, new: str, why: str, runs: list[str], tmp_path: Path
) -> None:
    edited(tmp_path / "B/evaluation/test" / file, old, new)
    assert why in refusal(*runs)


# The command


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = (
        "import atexit, runpy, sys\n"
        "heavy = {'torch', 'mlflow', 'timm'}\n"
        "atexit.register(lambda: print('heavy:', *sorted(heavy & sys.modules.keys())))\n"
        "runpy.run_module('dermalyze.compare', run_name='__main__', alter_sys=True)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_prints_the_tables_and_needs_no_torch(tmp_path: Path) -> None:
    a_run(tmp_path / "honest", FRAME, PROBS["A"])
    a_run(tmp_path / "leaky", FRAME, PROBS["B"], trained=("L3", "L7"))
    told_of(tmp_path / "honest", MODEL)
    write_checkpoint(tmp_path / "honest" / BEST, {"a": torch.zeros(1)}, MODEL)
    done = command(tmp_path, "runs=[honest,leaky]", "group_seeds=false", "draws=100")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "heavy:"
    assert "leakage: leaky was trained on lesions of 4 of these images" in done.stdout
    assert "test split: 90 images, 45 lesions; in brackets 95 % over 100 draws" in done.stdout
    assert "4 images of lesions that trained a run, 2 lesions" in done.stdout
    assert (
        "made outputs/comparison (compare.html, comparison.json, comparison.csv, figures)"
        in done.stdout
    )
    assert DISCLAIMER in done.stdout
    report = json.loads((tmp_path / "outputs/comparison/comparison.json").read_text())
    (difference,) = (
        row
        for row in report["results"]
        if (row["minus"], row["metric"], row["images"]) == ("honest", "accuracy", "all")
    )
    shown = f"{difference['value']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"
    (line,) = [s for s in done.stdout.splitlines() if s.startswith("leaky - honest") and shown in s]
    test = report["tests"][0]
    assert f"{test['only_run_right']}:{test['only_minus_right']}" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "missing: runs"),
        (["runs=one"], "one is no run's folder (it has no config.yaml)"),
        (["runs=[one,two]", "level=95"], "level=95 (int): Input should be less than 1"),
    ],
)
def test_mistakes_end_with_exit_code_2(arguments: list[str], said: str, tmp_path: Path) -> None:
    failed = command(tmp_path, *arguments)
    assert failed.returncode == 2
    assert said in failed.stdout + failed.stderr
    assert "Traceback" not in failed.stdout + failed.stderr

"""Phantom lesions: the same folder for the same parameters, whole or not at all, and learnable."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dermalyze.data.phantom_classes import (
    CLINICS,
    FEATURELESS,
    LESIONS_IN_HAM10000,
    NEIGHBOURS,
    TEXTBOOK,
    cue_strengths,
)
from dermalyze.data.phantom_drawing import draw_lesion, photograph
from dermalyze.data.synthetic import (
    contact_sheet,
    draw_phantoms,
    lesions_by_class,
    read_phantoms,
)
from dermalyze.data.table import LesionTable
from dermalyze.errors import ConfigError, DataError
from dermalyze.randomness import Purpose, generator
from dermalyze.taxonomy import HAM10000_CODES

APART: dict[str, Any] = dict(one_session=False)
FEW = APART | dict(lesions=42, image_size=32, imbalance=0.0, difficulty=0.5, seed=3)
MANY = APART | dict(lesions=420, image_size=32, imbalance=0.3, difficulty=0.0, seed=3)


def files(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantoms") / "few"
    draw_phantoms(root=str(root), **FEW)
    return root


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> LesionTable:
    return read_phantoms(root=str(tmp_path_factory.mktemp("phantoms") / "many"), **MANY)


# Counts


def test_full_imbalance_at_the_real_size_is_ham10000() -> None:
    assert lesions_by_class(lesions=7470, imbalance=1.0) == LESIONS_IN_HAM10000


def test_no_imbalance_shares_out_evenly_and_the_rest_to_the_first_classes() -> None:
    by_class = lesions_by_class(lesions=100, imbalance=0.0)
    assert list(by_class.values()) == [15, 15, 14, 14, 14, 14, 14]


@given(lesions=st.integers(1_000, 20_000), imbalance=st.floats(0, 1))
def test_counts_are_within_one_of_their_share_and_add_up(lesions: int, imbalance: float) -> None:
    weights = {code: count**imbalance for code, count in LESIONS_IN_HAM10000.items()}
    by_class = lesions_by_class(lesions=lesions, imbalance=imbalance)
    assert sum(by_class.values()) == lesions
    for code, weight in weights.items():
        assert abs(by_class[code] - lesions * weight / sum(weights.values())) < 1


def test_too_few_lesions_are_refused_with_the_counts_and_a_number_that_works() -> None:
    with pytest.raises(DataError) as error:
        lesions_by_class(lesions=300, imbalance=1.0)
    assert "df 3" in str(error.value)
    assert "vasc 4" in str(error.value)
    assert "data.source.lesions=614 or more" in str(error.value)
    assert min(lesions_by_class(lesions=614, imbalance=1.0).values()) == 6


# The table


def test_table_reads_without_warnings(many: LesionTable) -> None:
    assert [finding.message for finding in many.findings if finding.level == "warning"] == []
    assert many.missing_images == ()
    assert many.name == "phantoms"
    assert many.classes == HAM10000_CODES


def test_table_has_the_lesions_asked_for(many: LesionTable) -> None:
    lesions = many.frame.drop_duplicates("lesion_id")
    assert Counter(lesions["dx"]) == lesions_by_class(lesions=420, imbalance=0.3)
    assert sorted(lesions["lesion_id"]) == [f"PHANTOM_{n:07d}" for n in range(1, 421)]
    assert list(many.frame["image_id"]) == [f"PHANTOM_IMG_{n:07d}" for n in range(1, len(many) + 1)]


def test_classes_are_not_in_order_of_the_ids(many: LesionTable) -> None:
    assert many.frame["dx"].head(40).nunique() >= 5  # 1, were they in order


def test_about_a_quarter_of_the_lesions_have_two_to_four_images(many: LesionTable) -> None:
    images = many.frame.groupby("lesion_id").size()
    assert images.between(1, 4).all()
    assert (images > 1).mean() == pytest.approx(0.262, abs=0.065)  # 3 standard deviations


def test_images_of_a_lesion_share_its_record(many: LesionTable) -> None:
    columns = ["dx", "dx_type", "age", "sex", "localization"]
    values = many.frame.groupby("lesion_id")[columns].nunique(dropna=False)
    assert (values == 1).all(axis=None)


def test_records_are_plausible_and_some_are_missing(many: LesionTable) -> None:
    frame = many.frame
    assert set(frame.loc[frame["dx_type"] == "follow_up", "dx"]) == {"nv"}
    assert set(frame["sex"]) == {"female", "male", "unknown"}
    assert 0 < frame["age"].isna().mean() < 0.08
    assert (frame["age"].dropna() % 5 == 0).all()
    assert frame["age"].dropna().between(5, 85).all()
    ages = frame.groupby("dx")["age"].mean()
    assert ages["bcc"] - ages["nv"] > 10
    for code, clinic in CLINICS.items():
        sites = set(frame.loc[frame["dx"] == code, "localization"])
        assert sites <= {*clinic.localization, "unknown"}


def test_clinics_shares_add_up() -> None:
    for clinic in CLINICS.values():
        assert sum(clinic.dx_type.values()) == pytest.approx(1)


# The folder


def test_images_are_rgb_jpegs_of_the_size_asked_for(few: Path) -> None:
    pictures = sorted((few / "images").iterdir())
    assert len(pictures) >= 42
    for path in pictures:
        with Image.open(path) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (32, 32))


def test_folder_says_that_it_is_drawn(few: Path) -> None:
    manifest = json.loads((few / "phantoms.json").read_text())
    assert manifest == {"what": "drawn, not patients", "drawing_version": 1, **FEW}
    assert "drawn, not patients" in (few / "README.txt").read_text()


def test_same_parameters_give_the_same_bytes(few: Path, tmp_path: Path) -> None:
    draw_phantoms(root=str(tmp_path / "again"), **FEW)
    assert files(tmp_path / "again") == files(few)


def test_another_seed_gives_other_pictures(few: Path, tmp_path: Path) -> None:
    draw_phantoms(root=str(tmp_path / "other"), **FEW | {"seed": 4})
    pixels, others = (
        {data for name, data in files(root).items() if name.endswith(".jpg")}
        for root in (few, tmp_path / "other")
    )
    assert len(pixels) >= 42  # no picture twice within a folder either
    assert not pixels & others


def test_existing_folder_is_used_as_it_is(few: Path, tmp_path: Path) -> None:
    shutil.copytree(few, tmp_path / "copy")
    marked = tmp_path / "copy" / "images" / "PHANTOM_IMG_0000001.jpg"
    marked.write_bytes(b"not drawn anew")
    draw_phantoms(root=str(tmp_path / "copy"), **FEW)
    assert marked.read_bytes() == b"not drawn anew"


def test_folder_of_other_phantoms_is_refused_with_the_difference(few: Path) -> None:
    before = files(few)
    with pytest.raises(DataError) as error:
        draw_phantoms(root=str(few), **FEW | {"difficulty": 0.75, "seed": 9})
    assert "difficulty is 0.5 there and 0.75 here, seed is 3 there and 9 here" in str(error.value)
    assert "data.root=" in str(error.value)
    assert files(few) == before


def test_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match=r"no folder of phantoms.*data\.root="):
        draw_phantoms(root=str(tmp_path / "mine"), **FEW)
    assert files(tmp_path / "mine") == {"thesis.txt": b"years of work"}


def test_an_empty_folder_is_filled(few: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    draw_phantoms(root=str(tmp_path / "empty"), **FEW)
    assert files(tmp_path / "empty") == files(few)


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="no folder of phantoms"):
        draw_phantoms(root=str(tmp_path / "file"), **FEW)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be drawn there.*data\.root="):
        draw_phantoms(root=str(tmp_path / "file" / "below"), **FEW)


def test_leftover_of_a_killed_drawing_is_harmless(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shots = 0

    def killed(*args: Any, **kwargs: Any) -> Image.Image:
        nonlocal shots
        shots += 1
        if shots == 10:
            raise KeyboardInterrupt
        return photograph(*args, **kwargs)

    root = tmp_path / "phantoms"
    with monkeypatch.context() as patch:
        patch.setattr("dermalyze.data.synthetic.photograph", killed)
        with pytest.raises(KeyboardInterrupt):
            draw_phantoms(root=str(root), **FEW | {"seed": 4})
    assert not root.exists()
    assert any(path.suffix == ".jpg" for path in tmp_path.rglob("*"))
    draw_phantoms(root=str(root), **FEW)
    assert files(root) == files(few)
    assert {path.name for path in tmp_path.iterdir()} <= {"phantoms", ".phantoms.lock"}


def test_two_that_draw_at_once_get_one_folder(few: Path, tmp_path: Path) -> None:
    root = str(tmp_path / "phantoms")
    with ThreadPoolExecutor(2) as pool:
        for drawing in [pool.submit(draw_phantoms, root=root, **FEW) for _ in range(2)]:
            drawing.result()
    assert files(tmp_path / "phantoms") == files(few)


def test_parameters_out_of_range_are_refused_all_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        draw_phantoms(
            root=str(tmp_path / "x"), lesions=42, image_size=8, imbalance=-1, difficulty=2, seed=-1,
            **APART,
        )  # fmt: skip
    for part in ("image_size=8", "imbalance=-1", "difficulty=2", "seed=-1"):
        assert f"data.source.{part}: must be" in str(error.value)
    assert not (tmp_path / "x").exists()


# What the pictures show


def test_contact_sheet_shows_the_first_lesions_of_each_class(few: Path) -> None:
    sheet = contact_sheet(root=str(few), per_class=3)
    assert sheet.size == (3 * 32, 14 + 7 * (14 + 32))
    table = read_phantoms(root=str(few), **FEW).frame.drop_duplicates("lesion_id")
    vasc = table.loc[table["dx"] == "vasc", "path"]
    with Image.open(vasc.iloc[2]) as third:
        shown = sheet.crop((64, sheet.height - 32, 96, sheet.height))
        assert shown.tobytes() == third.tobytes()


def test_contact_sheet_of_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no phantoms\.json"):
        contact_sheet(root=str(tmp_path), per_class=3)


@pytest.mark.parametrize("dx", HAM10000_CODES)
def test_cues_are_the_textbook_at_difficulty_0(dx: str) -> None:
    drawn = [cue_strengths(generator(n, Purpose.PHANTOM), dx, difficulty=0.0) for n in range(200)]
    for cue in drawn[0]:
        page = TEXTBOOK[dx].get(cue, 0.0)
        strengths = [cues[cue] for cues in drawn]
        assert 0.8 * page <= min(strengths) <= max(strengths) <= 1.2 * page


def test_difficulty_fades_cues_and_borrows_those_of_neighbours() -> None:
    drawn = [
        cue_strengths(generator(n, Purpose.PHANTOM), "mel", difficulty=1.0) for n in range(400)
    ]
    assert np.mean([cues["veil"] < 0.2 for cues in drawn]) > 0.2  # of 1.0 in the textbook
    assert np.mean([cues["cysts"] > 0.2 for cues in drawn]) > 0.03  # from bkl; 0 in the textbook
    assert all(cues["lacunae"] == 0 for cues in drawn)  # vasc is no neighbour


def test_every_class_has_a_page_neighbours_and_known_cues() -> None:
    assert set(TEXTBOOK) == set(NEIGHBOURS) == set(CLINICS) == set(HAM10000_CODES)
    cues = {cue for page in TEXTBOOK.values() for cue in page}
    assert set(FEATURELESS) < cues
    for code, neighbours in NEIGHBOURS.items():
        assert set(neighbours) < set(HAM10000_CODES) - {code}


@pytest.mark.parametrize("dx", HAM10000_CODES)
def test_two_photographs_show_one_lesion_differently(dx: str) -> None:
    lesion = draw_lesion(generator(0, Purpose.PHANTOM, 1, 1), dx, difficulty=0.0, side=64)
    first, second, again = (
        np.asarray(photograph(generator(0, Purpose.PHANTOM, 1, time), lesion, side=64), float)
        for time in (2, 3, 2)
    )
    assert (first == again).all()
    assert np.abs(first - second).mean() > 2
    assert first.std() > 5


def test_photographs_of_one_session_have_one_device_and_one_light() -> None:
    # The skin of two photographs of a lesion differs by the device's colours, unless they are of
    # one session; where the lesion lies, and how it is turned, differs all the same.
    gaps: dict[bool, list[float]] = {False: [], True: []}
    for number in range(30):
        lesion = draw_lesion(
            generator(0, Purpose.PHANTOM, number, 1), "nv", difficulty=0.0, side=64
        )
        for one_session, found in gaps.items():
            pictures = [
                np.asarray(
                    photograph(
                        generator(0, Purpose.PHANTOM, number, time),
                        lesion,
                        session=generator(0, Purpose.PHANTOM, number, 0) if one_session else None,
                        side=64,
                    ),
                    float,
                )
                for time in (2, 3)
            ]
            assert np.abs(pictures[0] - pictures[1]).mean() > 2
            skin_2C = [np.median(picture[:, :4].reshape(-1, 3), axis=0) for picture in pictures]
            found.append(float(np.abs(skin_2C[0] - skin_2C[1]).mean()))
    assert np.median(gaps[True]) < 0.4 * np.median(gaps[False])


def test_one_session_changes_the_pictures_and_no_row(few: Path, tmp_path: Path) -> None:
    draw_phantoms(root=str(tmp_path / "same"), **FEW | {"one_session": True})
    apart, same = files(few), files(tmp_path / "same")
    assert apart.keys() == same.keys()
    assert apart["HAM10000_metadata.csv"] == same["HAM10000_metadata.csv"]
    assert json.loads(same["phantoms.json"])["one_session"] is True
    assert sum(apart[name] != same[name] for name in apart if name.endswith(".jpg")) > 40


def colours(paths: list[str]) -> np.ndarray:
    """Per channel: percentiles of the middle against the rim, so that casts cancel."""
    features = []
    for path in paths:
        with Image.open(path) as picture:
            image_HWC = np.asarray(picture, float)
        rim_RGB = np.median(image_HWC[2:-2, [3, 4, -5, -4]].reshape(-1, 3), axis=0)
        middle_NC = image_HWC[8:24, 8:24].reshape(-1, 3)
        relative = np.percentile(middle_NC, [2, 20, 50, 80, 98], axis=0) - rim_RGB
        features.append(np.concatenate([relative.ravel(), middle_NC.std(axis=0)]))
    return np.stack(features)


def accuracy_by_colour(table: LesionTable) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", C=0.3))
    predicted = cross_val_predict(
        model,
        colours(table.frame["path"].tolist()),
        table.labels,
        groups=table.frame["lesion_id"],
        cv=StratifiedGroupKFold(4, shuffle=True, random_state=0),
    )
    return float(balanced_accuracy_score(table.labels, predicted))


def test_difficulty_makes_classes_harder_to_tell(many: LesionTable, tmp_path: Path) -> None:
    hard = read_phantoms(root=str(tmp_path / "hard"), **MANY | {"difficulty": 1.0})
    easy_accuracy, hard_accuracy = accuracy_by_colour(many), accuracy_by_colour(hard)
    assert easy_accuracy > 0.6  # by a few colours alone; chance is 0.14
    assert 0.2 < hard_accuracy < easy_accuracy - 0.15

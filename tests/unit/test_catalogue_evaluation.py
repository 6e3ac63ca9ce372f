"""What may come in where models are evaluated and compared, row by row of a catalogue.

Each row names the tests that hold it, of the units and of whole commands. What no other file holds
stands below.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import logging
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dermalyze.data.decode import PreprocessSpec
from dermalyze.data.metadata_features import MetadataEncoding
from dermalyze.data.split import Split, save_split
from dermalyze.data.table import LesionTable
from dermalyze.errors import ConfigError, DataError
from dermalyze.evaluation.predictions import read_predictions
from dermalyze.files import spreadsheet_cell, text_of_cell
from dermalyze.inference.loading import ModelFacts, check_members
from dermalyze.judged_images import judged_rows, leakage, shared_part, validation_rows
from dermalyze.reporting.fitted import fit_on_validation
from dermalyze.reporting.results import results
from dermalyze.reporting.written import write_evaluation
from dermalyze.run_folder import CONFIG
from dermalyze.validation_fit import validation_fit

TESTS = Path(__file__).parents[1]
CATALOGUE = {
    53: (
        "a test image's lesion among a member's training lesions",
        "unit/test_catalogue_evaluation::test_53_lesions_that_a_member_has_seen_are_refused",
        "unit/test_catalogue_evaluation"
        "::test_53_images_under_other_lesions_and_capitals_are_seen_too",
        "commands/test_train_and_evaluate::test_lesions_that_were_seen_are_refused",
        "commands/test_evaluate_ensembles::test_members_that_do_not_belong_together_are_refused",
        "commands/test_own_folder::test_a_model_trained_apart_is_not_tested_on_joined_copies",
    ),
    54: (
        "unknown TTA mode or aggregation",
        "commands/test_evaluate_ensembles::test_views_are_averaged_into_a_folder_of_their_own",
        "unit/test_views::test_views_that_cannot_be_are_refused",
    ),
    55: (
        "weights negative, NaN, sum 0, wrong count",
        "unit/test_ensemble::test_weights_that_cannot_be_are_refused",
        "unit/test_ensemble::test_a_wrong_number_of_weights_and_unknown_metrics_are_refused",
        "commands/test_evaluate_ensembles::test_members_are_weighted_by_their_own_validation",
    ),
    56: (
        "the same model twice",
        "unit/test_catalogue_evaluation::test_56_57_members_are_named_and_a_double_is_warned_of",
        "commands/test_evaluate_ensembles"
        "::test_the_same_model_twice_is_warned_of_and_changes_nothing",
        "unit/test_comparison::test_one_run_twice",
    ),
    57: (
        "members with other preprocessing",
        "unit/test_catalogue_evaluation::test_56_57_members_are_named_and_a_double_is_warned_of",
        "commands/test_evaluate_ensembles::test_members_are_weighted_by_their_own_validation",
    ),
    58: (
        "non-finite probabilities",
        "unit/test_forward::test_values_that_are_not_finite_name_their_images",
        "unit/test_metrics::test_non_finite_names_rows",
        "unit/test_catalogue_evaluation::test_58_predictions_that_are_not_finite_are_not_compared",
    ),
    59: (
        "a class missing from y_true",
        "unit/test_metrics::test_absent_class",
        "unit/test_full_metrics::test_what_the_labels_leave_undefined_is_nan",
        "unit/test_measures::test_what_has_no_value_says_why",
        "unit/test_catalogue_evaluation::test_59_a_class_without_images_is_null_and_the_rest_stands",
        "unit/test_isic2018"
        "::test_without_ties_it_is_balanced_accuracy_and_a_class_without_images_is_left_out",
    ),
    60: (
        "images to be predicted of which one cannot be used",
        "unit/test_predictor::test_a_batch_keeps_its_order_and_a_bad_file_its_place",
        "unit/test_pictures::test_what_is_no_image_is_refused_with_the_mend",
        "unit/test_predict_many::test_going_on_ends_in_the_same_bytes",
        "commands/test_predict::test_one_bad_file_is_a_row_and_a_truthful_exit_code",
    ),
    61: (
        "a label file of other images",
        "unit/test_catalogue_evaluation::test_61_other_images_than_the_runs_are_named_five_each_way",
        "unit/test_comparison::test_other_images_are_named_five_each_way",
        "unit/test_comparison::test_another_label_or_lesion_is_named",
    ),
    62: (
        "file names that are formulas or HTML",
        "unit/test_catalogue_evaluation::test_62_ids_that_are_formulas_or_html_are_text_everywhere",
        "unit/test_catalogue_evaluation::test_62_a_cell_gives_its_text_back",
        "unit/test_plots::test_names_are_not_formulas",
        "unit/test_reporting::test_the_page_holds_the_numbers_and_needs_no_other_file",
    ),
    63: (
        "a folder to be predicted: other files, links, no image at all",
        "unit/test_listing::test_a_folder_is_all_of_its_images_however_deep_by_name",
        "unit/test_listing::test_faults_of_a_table_name_their_place",
        "unit/test_listing::test_no_image_is_an_error",
    ),
}
CLASSES = ("bkl", "mel", "nv")


@cache
def functions_in(module: str) -> frozenset[str]:
    tree = ast.parse((TESTS / f"{module}.py").read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_every_row_has_a_test_that_is_there() -> None:
    assert list(CATALOGUE) == [*range(53, 64)]
    named = [name for _, *names in CATALOGUE.values() for name in names]
    gone = [
        name for name in named if name.partition("::")[2] not in functions_in(name.split("::")[0])
    ]
    assert gone == []


def member(path: Path, *, trained_on: list[str], size: int = 8) -> ModelFacts:
    """What a checkpoint says, of which a run's folder may be made."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(f"{trained_on} {size}".encode())
    return ModelFacts(
        description=None,
        classes=CLASSES,
        preprocess=PreprocessSpec(image_size=size),
        encoding=MetadataEncoding((), (0.0, 1.0), {}),
        header={"train_lesions": trained_on, "val_lesions": []},
        path=path,
    )


def table(names: list[str], folder: Path) -> LesionTable:
    """Two images a lesion, of the classes in turn; all show one picture."""
    picture = folder / "picture.png"
    Image.new("RGB", (8, 8), "pink").save(picture)
    frame = pd.DataFrame({"image_id": names, "path": str(picture), "age": 50.0})
    frame["lesion_id"] = [f"L{row // 2}" for row in range(len(names))]
    frame["label"] = np.arange(len(names)) // 2 % 3
    frame["dx"] = [CLASSES[label] for label in frame["label"]]
    return LesionTable(frame, CLASSES, "drawn", findings=(), missing_images=())


def split_of(own: LesionTable, folder: Path) -> None:
    """A run's folder with a split of 18 images: six each in train, val and test."""
    folder.mkdir()
    (folder / CONFIG).write_text("")
    part_of_row = np.arange(18) // 6
    save_split(Split.of(own.frame, part_of_row, "by hand", None), own.frame, folder)


ASKED = {
    "intervals": {"level": 0.9, "draws": 20, "seed": 0},
    "specificities": [0.9],
    "subgroups": {"few_lesions": 30, "age_edges": [40]},
    "sets": {"level": 0.8, "penalty": 0.01, "free_ranks": 1},
}
ABOUT = {
    "data": "<b>drawn</b>",
    "split": "test",
    "logit_adjustment": None,
    "leakage": None,
    "fitted_on_these": None,
    "ensemble": None,
    "members": [{"epoch": 1, "seed": 7, "weight": 1.0}],
    "tta": {"views": ["identity"], "aggregation": "mean"},
}
FORMULAS = ["=HYPERLINK(1)", "+1", "-1", "@A1", "'=1", "<b>x</b>", "a,b", 'say "x"']


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> LesionTable:
    """Eight images of bkl and mel, none of nv, with ids that strangers might choose."""
    own = table(FORMULAS, tmp_path_factory.mktemp("pictures"))
    own.frame["label"] %= 2
    own.frame["dx"] = [CLASSES[label] for label in own.frame["label"]]
    own.frame.loc[:1, "lesion_id"] = "=L0"
    own.frame["localization"] = ["<b>back</b>", "face"] * 4
    return dataclasses.replace(own, name="<b>drawn</b>")


@pytest.fixture(scope="module")
def evaluation(own: LesionTable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation of it, in which all are mistakes. Read it only."""
    labels_N = own.frame["label"].to_numpy()
    probs_NK = 0.4 * np.random.default_rng(0).dirichlet(np.ones(3), 8) + 0.6 * np.eye(3)[2]
    found = results(
        labels_N,
        probs_NK,
        own.frame,
        CLASSES,
        config=ASKED,
        fitted=None,
        why_not_fitted="no validation part",
        unlike_N=None,
    )
    folder = tmp_path_factory.mktemp("run") / "evaluation"
    write_evaluation(
        folder, labels_N, probs_NK, own.frame, CLASSES, unsure={}, found=found, about=ABOUT
    )
    return folder


def test_53_lesions_that_a_member_has_seen_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    judged = table([f"i{row}" for row in range(8)], tmp_path)
    members = [
        member(tmp_path / "one" / "best", trained_on=["elsewhere"]),
        member(tmp_path / "two" / "best", trained_on=["L1", "L3"]),
    ]
    asked = {"split": "all", "allow_seen_lesions": False}
    with pytest.raises(DataError, match=r"2 lesions .* one of these models \(first: L1, L3\)"):
        judged_rows(asked, judged, members)
    assert leakage("val", judged, np.arange(8), members) is None
    assert len(judged_rows(asked, judged, members[:1])) == 8
    assert leakage("all", judged, np.arange(8), members[:1]) is None

    by_name = {**asked, "allow_seen_lesions": True}
    assert judged_rows(by_name, judged, members).tolist() == list(range(8))
    said = leakage("all", judged, np.arange(8), members)
    assert str(said).startswith("4 of 8 images are of lesions that trained or selected the model")
    assert f"leakage: {said}" in caplog.text


def test_53_images_under_other_lesions_and_capitals_are_seen_too(tmp_path: Path) -> None:
    judged = table([f"i{row}" for row in range(8)], tmp_path)
    asked = {"split": "all", "allow_seen_lesions": False}
    for header, seen in (
        ({"train_lesions": ["l1"]}, "1 lesions .*first: L1"),
        ({"train_images": ["I0", "I1", "other"]}, "1 lesions .*first: L0"),
        ({"val_images": ["i5"], "train_lesions": ["L0"]}, "2 lesions .*first: L0, L2"),
    ):
        one = member(tmp_path / "run" / "best", trained_on=[])
        one.header.update(header)
        with pytest.raises(DataError, match=seen):
            judged_rows(asked, judged, [one])
    # The other image of a lesion of which one was seen is of a seen lesion.
    assert str(leakage("all", judged, np.arange(8), [one])).startswith("4 of 8 images")


def test_61_validation_parts_that_differ_are_no_common_one(tmp_path: Path) -> None:
    judged = table([f"i{row:02d}" for row in range(24)], tmp_path)
    members = []
    for name, start in (("one", 12), ("two", 12), ("three", 6)):
        run = tmp_path / name
        run.mkdir()
        (run / CONFIG).write_text("")
        part_of_row = np.digitize(np.arange(24), [start, 18])
        save_split(Split.of(judged.frame, part_of_row, "by hand", None), judged.frame, run)
        members.append(member(run / "best", trained_on=[]))
    assert shared_part("test", judged, members).tolist() == list(range(18, 24))
    found = validation_rows(judged, members[:2])
    assert found is not None
    assert found.tolist() == list(range(12, 18))
    assert validation_rows(judged, members) is None
    config = {"sets": {}, "abstention": {}, "unlike_training": {}, "data": {"root": None}}
    for one in members:
        one.header.update(epoch=1, validation_metrics={}, seed=1, split_fingerprint="f")
    assert validation_fit(
        config, members, home=tmp_path, prediction={}, on_validation=lambda: None
    ) == (None, "the models' validation parts differ, so none is unseen by all of them")


def test_56_57_members_are_named_and_a_double_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    small = member(tmp_path / "one" / "best", trained_on=["L1"], size=8)
    large = member(tmp_path / "two" / "best", trained_on=["L1"], size=64)
    check_members([small, large])
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
    for one in (small, large):
        assert f"ensemble: {one.path}, {one.preprocess.image_size} pixels" in caplog.text
    again = member(tmp_path / "three" / "best", trained_on=["L1"], size=8)
    check_members([small, large, again])
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert warning.getMessage() == (
        f"ensemble: {small.path} and {again.path} are the same model, which has two votes"
    )


def test_58_predictions_that_are_not_finite_are_not_compared(
    evaluation: Path, tmp_path: Path
) -> None:
    shutil.copytree(evaluation, tmp_path / "changed")
    path = tmp_path / "changed" / "predictions.csv"
    frame = pd.read_csv(path)
    frame.loc[3, "probability_mel"] = np.inf
    frame.to_csv(path, index=False)
    with pytest.raises(DataError, match=r"rows \d \(1 of 8\): not finite"):
        read_predictions(tmp_path / "changed")


def test_59_a_class_without_images_is_null_and_the_rest_stands(evaluation: Path) -> None:
    report = json.loads((evaluation / "evaluation_metrics.json").read_text())
    reason = "none of the 8 images is labelled nv"
    assert report["undefined"] == {"nv": reason}
    assert report["per_class"]["nv"]["auc"] is None
    nothing = {"value": None, "low": None, "high": None, "draws": 0, "reason": reason}
    assert report["intervals"]["per_class"]["nv"]["auc"] == nothing
    shares = report["confusion_matrix"]["share_of_true"]
    assert shares[CLASSES.index("nv")] == [None] * 3
    assert sum(shares[0]) == pytest.approx(1)
    aucs = [report["per_class"][code]["auc"] for code in ("bkl", "mel")]
    assert report["metrics"]["macro_auc"] == pytest.approx(np.mean(aucs))


def test_61_other_images_than_the_runs_are_named_five_each_way(tmp_path: Path) -> None:
    judged = table([f"i{row:02d}" for row in range(18)], tmp_path)
    split_of(judged, tmp_path / "run")
    runs = [member(tmp_path / "run" / "best", trained_on=["L0", "L1"])]
    assert shared_part("test", judged, runs).tolist() == list(range(12, 18))
    other = table([f"{'ij'[row > 8]}{row:02d}" for row in range(18)], tmp_path)
    with pytest.raises(DataError) as refused:
        shared_part("test", other, runs)
    for letter in "ij":
        names = ", ".join(f"{letter}{row:02d}" for row in range(9, 14))
        assert names in str(refused.value)
        assert f"{letter}14" not in str(refused.value)
    assert str(refused.value).startswith(
        f"split=test: {tmp_path / 'run'} was trained on other data than {other.name}, on which"
    )
    loose = [member(tmp_path / "loose" / "best", trained_on=[])]
    with pytest.raises(ConfigError, match="lies in no run's folder, so its split is not known"):
        shared_part("test", judged, loose)


def test_62_ids_that_are_formulas_or_html_are_text_everywhere(
    own: LesionTable, evaluation: Path
) -> None:
    written = pd.read_csv(evaluation / "predictions.csv")
    assert written["image_id"].tolist() == [
        *(f"'{name}" for name in FORMULAS[:5]),
        *FORMULAS[5:],
    ]
    assert written["lesion_id"].tolist()[0] == "'=L0"
    # Read back to be compared, they are what they were.
    back = read_predictions(evaluation)
    assert set(back.image_ids_N) == set(own.frame["image_id"])
    assert set(back.lesion_ids_N) == set(own.frame["lesion_id"])
    # The page prints the names of data and of places, and they are never tags.
    page = (evaluation / "report.html").read_text(encoding="utf-8")
    assert "<b>" not in page
    assert "&lt;b&gt;drawn" in page
    assert "&lt;b&gt;back" in page


def test_62_classes_that_are_formulas_are_text_and_sets_of_them_are_told_apart(
    own: LesionTable, tmp_path: Path
) -> None:
    classes = ("=1+1", "mel b", "nv")
    frame = own.frame.assign(dx=[classes[label] for label in own.frame["label"]])
    probs_NK = np.tile([0.5, 0.3, 0.2], (8, 1))
    fitted = fit_on_validation(
        own.labels, probs_NK, sets=ASKED["sets"], abstention={"error": 0.1}
    ) | {"temperature": 1.0, "unlike_training": {"members": None, "flag_above": None}}
    fitted["thresholds"] = {"lac": [0.75] * 3}
    fitted["unlike_training"]["reason"] = "no features"
    how = {"fitted": fitted, "why_not_fitted": None, "unlike_N": None}
    found = results(own.labels, probs_NK, frame, classes, config=ASKED, **how)
    write_evaluation(
        tmp_path, own.labels, probs_NK, frame, classes, unsure={}, found=found, about=ABOUT
    )
    written = pd.read_csv(tmp_path / "predictions.csv")
    assert set(written["predicted"]) == {"'=1+1"}
    assert set(written["set_lac"]) == {"'=1+1; mel b"}
    assert written["dx"].tolist()[:4] == ["'=1+1", "'=1+1", "mel b", "mel b"]
    assert read_predictions(tmp_path).classes == classes


@pytest.mark.parametrize("text", [*FORMULAS, "''=1", "'", "", "\t=1", "it's -1"])
def test_62_a_cell_gives_its_text_back(text: str) -> None:
    cell = spreadsheet_cell(text)
    assert text_of_cell(cell) == text
    assert not cell.startswith(("=", "+", "-", "@", "\t"))

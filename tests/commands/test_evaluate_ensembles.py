"""Test-time augmentation and ensembles, as commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dermalyze.checkpoint_file import BEST, read_checkpoint, write_checkpoint
from dermalyze.taxonomy import HAM10000_CODES

pytestmark = pytest.mark.slow

COLUMNS = [f"probability_{code}" for code in HAM10000_CODES]
EVALUATE = ("-m", "dermalyze.evaluate", "device=cpu")


@pytest.fixture(scope="session")
def others(trained, tiny, python_in) -> list[Path]:
    """Two more runs on the split of `trained`: another seed, and other pictures and a head."""
    python, start = python_in(trained.parents[2]), trained.parents[2]
    split = ("data/split=from_files", f"data.split.directory={trained}", "tracking=none")
    runs = {"two": ("training.seed=7",), "three": ("data.image_size=48", "model/head=gem")}
    for name, changes in runs.items():
        folder = f"hydra.run.dir=multirun/{name}"
        python("-m", "dermalyze.train", *tiny, *split, *changes, folder)
    return [start / "multirun" / name for name in runs]


def result(folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    report = json.loads((folder / "evaluation_metrics.json").read_text())
    return pd.read_csv(folder / "predictions.csv"), report


def probabilities(python, tmp_path: Path, run: Path, split: str = "test") -> np.ndarray:
    name = f"{run.name}_{split}"
    python(*EVALUATE, f"checkpoint={run}", f"split={split}", f"output={name}", "track=false")
    return result(tmp_path / name)[0][COLUMNS].to_numpy()


def test_views_are_averaged_into_a_folder_of_their_own(trained, python, tmp_path):
    single = probabilities(python, tmp_path, trained)
    run = shutil.copytree(trained, tmp_path / "run")
    python(*EVALUATE, f"checkpoint={run}", "tta=medium", "tta.aggregation=max", "track=false")
    frame, report = result(run / "evaluation/test_tta_medium_max")
    assert report["tta"]["aggregation"] == "max"
    assert len(report["tta"]["views"]) == 8
    assert np.abs(frame[COLUMNS].to_numpy() - single).max() > 1e-3
    assert frame[COLUMNS].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-12)
    assert (frame["mutual_information"] == 0).all()  # there is one model to agree with itself
    assert (frame["predicted_class_deviation"] > 0).all()

    alone, about = result(tmp_path / "one_test")
    assert (alone[["mutual_information", "predicted_class_deviation"]] == 0).all(axis=None)
    assert about["tta"] == {"name": "off", "views": ["identity"], "aggregation": "mean"}
    assert about["ensemble"] is None
    assert [member["weight"] for member in about["members"]] == [1.0]
    two = np.sort(single, axis=1)[:, -2:]
    assert alone["margin"].to_numpy() == pytest.approx(two[:, 1] - two[:, 0], abs=1e-12)
    entropy = -(single * np.log(single)).sum(axis=1)
    assert alone["predictive_entropy"].to_numpy() == pytest.approx(entropy, abs=1e-9)

    refused = python(*EVALUATE, f"checkpoint={run}", "tta=huge", expect=2)
    assert all(name in refused.stdout + refused.stderr for name in ("off", "light", "medium"))
    refused = python(*EVALUATE, f"checkpoint={run}", "tta.aggregation=median", expect=2)
    assert "'mean', 'geometric_mean' or 'max'" in refused.stdout


def test_members_are_weighted_by_their_own_validation(trained, others, python, tmp_path):
    """Each sees its own pictures: one of them was trained on larger ones."""
    runs = [trained, *others]
    single = np.stack([probabilities(python, tmp_path, run) for run in runs])
    ensemble = f"checkpoint=[{','.join(map(str, runs))}]"
    python(*EVALUATE, ensemble, "output=together")
    frame, report = result(tmp_path / "together")
    headers = [read_checkpoint(run / BEST)[1] for run in runs]
    values = np.array([header["validation_metrics"]["val/balanced_accuracy"] for header in headers])
    weights = values / values.sum()
    assert report["ensemble"] == "weighted_mean"
    assert [m["weight"] for m in report["members"]] == pytest.approx(weights, abs=1e-15)
    assert [m["preprocess"]["image_size"] for m in report["members"]] == [32, 32, 48]
    expected = np.einsum("m,mnk->nk", weights, single)
    np.testing.assert_allclose(frame[COLUMNS], expected, rtol=1e-9)
    assert (frame["mutual_information"] > 0).all()
    # Each is told by the temperature, and by what it mends, that it has when evaluated alone.
    for run, member in zip(runs, report["calibration"]["members"], strict=True):
        alone = result(tmp_path / f"{run.name}_test")[1]["calibration"]
        assert member["temperature"] == pytest.approx(alone["temperature"], abs=1e-6)
        assert member["after"]["nll"] == pytest.approx(alone["after"]["nll"], abs=1e-9)
        assert member["validation"]["before"] == alone["validation"]["before"]

    # Greedy selection, by hand on the validation predictions of each: the first choice is the best.
    python(*EVALUATE, ensemble, "ensemble=greedy", "ensemble.rounds=1", "output=greedy")
    (chosen,) = np.flatnonzero([m["weight"] for m in result(tmp_path / "greedy")[1]["members"]])
    assert chosen == values.argmax()
    np.testing.assert_allclose(result(tmp_path / "greedy")[0][COLUMNS], single[chosen], rtol=1e-9)

    # Other data have no validation part: the weights are those that were chosen for this greedy.
    other = ("data=synthetic", f"data.root={data_of(trained)}", "data.source.lesions=84")
    other += ("data.source.image_size=32", "data.source.imbalance=0.0", "split=all")
    other += ("allow_seen_lesions=true", "ensemble=greedy", "output=other")
    python(*EVALUATE, ensemble, *other, "ensemble.rounds=1")
    again = result(tmp_path / "other")[1]
    assert np.flatnonzero([m["weight"] for m in again["members"]]).tolist() == [chosen]
    assert again["calibration"]["temperature"] is not None
    refused = python(*EVALUATE, ensemble, *other, "ensemble.rounds=2", expect=2)
    assert "rounds=2): its weights are chosen on validation, and no evaluation" in refused.stdout

    wrong = python(*EVALUATE, ensemble, "ensemble.weights=[1,2]", expect=2)
    assert "2 weights for 3 models" in wrong.stdout
    for weights_said, why in (("[1,-1,1]", "-1 is no"), ("[0,0,0]", "their sum is 0")):
        wrong = python(*EVALUATE, ensemble, f"ensemble.weights={weights_said}", expect=2)
        assert why in wrong.stdout + wrong.stderr


def test_a_multirun_is_an_ensemble_of_all_its_runs(trained, others, python, tmp_path):
    sweep = tmp_path / "sweep"
    shutil.copytree(trained, sweep / "2")
    shutil.copytree(others[0], sweep / "10")
    python(*EVALUATE, f"checkpoint={sweep}", f"data.root={data_of(trained)}", "ensemble=mean")
    frame, report = result(sweep / "evaluation" / "test_mean")
    assert [Path(m["checkpoint"]).parent.name for m in report["members"]] == ["2", "10"]
    single = [probabilities(python, tmp_path, run) for run in (trained, others[0])]
    np.testing.assert_allclose(frame[COLUMNS], np.mean(single, axis=0), rtol=1e-9)
    (sweep / "10" / BEST).unlink()
    refused = python(*EVALUATE, f"checkpoint={sweep}", expect=2)
    assert f"{sweep / '10' / BEST} does not exist" in refused.stdout


@pytest.mark.thorough
def test_the_same_model_twice_is_warned_of_and_changes_nothing(trained, python, tmp_path):
    single = probabilities(python, tmp_path, trained)
    twice = python(*EVALUATE, f"checkpoint=[{trained},{trained / BEST}]", "output=twice")
    assert "are the same model, which has two votes" in twice.stdout
    np.testing.assert_allclose(result(tmp_path / "twice")[0][COLUMNS], single, rtol=1e-12)


def test_members_that_do_not_belong_together_are_refused(trained, tiny, python, tmp_path):
    other = shutil.copytree(trained, tmp_path / "other")
    tensors, header = read_checkpoint(trained / BEST)
    turned = list(reversed(header["classes"]))
    write_checkpoint(other / BEST, tensors, header | {"classes": turned})
    refused = python(*EVALUATE, f"checkpoint=[{trained},{other}]", expect=2)
    for classes in (header["classes"], turned):
        assert ", ".join(classes) in refused.stdout

    split = ("data.split.seed=9", "training.epochs=1", "tracking=none", "hydra.run.dir=split")
    python("-m", "dermalyze.train", *tiny, *split)
    refused = python(*EVALUATE, f"checkpoint=[{trained},split]", expect=2)
    assert "images are in that part of only one of" in refused.stdout

    # A member that was trained on lesions of the test split: refused, by whichever of them.
    test = pd.read_csv(trained / "test_split.csv")["lesion_id"].tolist()
    header["train_lesions"] = sorted({*header["train_lesions"], test[0]})
    write_checkpoint(other / BEST, tensors, header)
    refused = python(*EVALUATE, f"checkpoint=[{trained},{other}]", expect=2)
    assert "1 lesions to be evaluated were used to train or select one of these" in refused.stdout


def data_of(run: Path) -> str:
    from dermalyze.run_folder import load_config

    return str(load_config(run).data.root)

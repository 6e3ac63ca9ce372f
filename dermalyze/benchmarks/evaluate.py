"""Evaluation: views of an image as one batch, and what is not a forward pass."""

from __future__ import annotations

import copy
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from dermalyze.benchmarks.apart import Peers, apart, memory_note
from dermalyze.benchmarks.composing import composed
from dermalyze.benchmarks.input import cached_store
from dermalyze.benchmarks.photographs import photographs
from dermalyze.benchmarks.rates import rate_rows, rate_table
from dermalyze.benchmarks.timing import Bars, Report, in_turns
from dermalyze.benchmarks.training import labels_of, our_training
from dermalyze.compute import Precision
from dermalyze.config import CONF_DIR, plain
from dermalyze.data.batches import ImageStore
from dermalyze.inference.folding import fold_batch_norm
from dermalyze.inference.forward import predict_probabilities, predict_views
from dermalyze.inference.views import SYMMETRIES, Views
from dermalyze.reporting.results import results
from dermalyze.reporting.written import write_evaluation
from dermalyze.taxonomy import HAM10000_CODES

ONE_BY_ONE, VIEW_BY_VIEW = "one image and view at a time", "one view of a batch at a time"
TOGETHER = "ours, all views in one batch"
KEPT = "one view of a batch, memory kept"
WHOLE = "an evaluation"
FOLDED = "ours folds BatchNorm into the convolutions, the others keep it"


def measure(
    *, repeats: int, backbone: str, image_size: int, batch_size: int, images: int
) -> Report:
    """Time eight views of each image, and all that follows a plain forward pass.

    All predict the same pictures; one view at a time shows the model as many at once as ours does,
    once in a process that leaves memory to the C library, once in ours. Only ours folds BatchNorm
    layers, as `evaluate` does.
    What follows: metrics, intervals, subgroups, figures and the page, as `evaluate` makes them,
    against the forward passes of the same images without views. Calibration and sets, which are
    fitted once a run, are left out.

    Args:
        repeats: how often each is timed.
        backbone: timm's name; its weights are random.
        image_size: pixels.
        batch_size: pictures.
        images: how many are evaluated.
    """
    with tempfile.TemporaryDirectory() as folder:
        shared: dict[str, Any] = {
            "paths": photographs(Path(folder), images=images),
            "cache": Path(folder) / "cache",
            "backbone": backbone,
            "image_size": image_size,
            "batch_size": batch_size,
        }
        with (
            apart(others, keep_memory=False, **shared) as theirs,
            apart(our_own, keep_memory=True, **shared) as ours,
        ):
            names = (ONE_BY_ONE, VIEW_BY_VIEW, KEPT, TOGETHER)
            each, note = theirs.peers | ours.peers, memory_note(theirs, ours)
            peers = {name: each[name] for name in names}
            seconds = in_turns(peers, repeats=repeats, title="evaluate", between=lambda: None)
            forward, outside = ours.peers[WHOLE]()
    rows = rate_rows(seconds, images=min(images, batch_size), yardstick=VIEW_BY_VIEW)
    share = outside / (forward + outside)
    title = (
        f"evaluation with {backbone} at {image_size} pixels, {torch.get_num_threads()} threads, "
        f"{len(SYMMETRIES)} views, {repeats} runs each"
    )
    table = rate_table(rows)
    alone, by_view, kept, together = (row["ratio"] for row in rows)
    table += [note, FOLDED]
    table.append(
        f"ours: {together / alone:.2f} times {ONE_BY_ONE}, {together / by_view:.2f} times "
        f"{VIEW_BY_VIEW}, {together / kept:.2f} times {KEPT}"
    )
    table.append(
        f"of {images} images without views: {forward:.1f} s forward, {outside:.1f} s all that "
        f"follows, {share:.1%} of both"
    )
    numbers = {
        "evaluate": rows,
        "forward": forward,
        "outside": outside,
        "share": share,
        "memory": note,
    }
    return Report(title, table, numbers, Bars("images/s, 8 views each", rows))


def predicting(
    paths: list[Path], cache: Path, *, backbone: str, image_size: int
) -> tuple[nn.Module, ImageStore]:
    """Return a model that predicts, of random weights, and its images."""
    store = cached_store(paths, cache, image_size=image_size)
    options = ["augmentation=none"]
    state, _ = our_training(store, backbone=backbone, image_size=image_size, options=options)
    return state.model.eval(), store


def others(
    *, paths: list[Path], cache: Path, backbone: str, image_size: int, batch_size: int
) -> Peers:
    """Return loops over views, of an image alone and of as many as ours shows at once."""
    model, store = predicting(paths, cache, backbone=backbone, image_size=image_size)
    few_N = np.arange(min(len(paths), batch_size))

    def one_by_one() -> None:
        for row in np.array_split(few_N, len(few_N)):
            view_by_view(model, store, row)

    return {ONE_BY_ONE: one_by_one, VIEW_BY_VIEW: partial(view_by_view, model, store, few_N)}


def view_by_view(model: nn.Module, store: ImageStore, rows_B: np.ndarray) -> None:
    """Show a model each view of some images in turn."""
    with torch.inference_mode():
        images_BCHW = store.batch(rows_B)
        for symmetry in SYMMETRIES.values():
            model(symmetry(images_BCHW))


def our_own(
    *, paths: list[Path], cache: Path, backbone: str, image_size: int, batch_size: int
) -> Peers:
    """Return our views, and an evaluation of all images: seconds of it in the model and outside."""
    as_trained, store = predicting(paths, cache, backbone=backbone, image_size=image_size)
    few_N = np.arange(min(len(paths), batch_size))
    precision = Precision(torch.device("cpu"), None)
    model = copy.deepcopy(as_trained)
    fold_batch_norm(model, image_size=image_size, precision=precision)
    views: Views = instantiate(OmegaConf.load(CONF_DIR / "tta" / "medium.yaml"))
    how: dict[str, Any] = {"batch_size": batch_size, "precision": precision}

    def together() -> None:
        predict_views(model, store, few_N, views=views, **how)

    def whole() -> tuple[float, float]:
        started = time.perf_counter()
        probs_NK = predict_probabilities(model, store, np.arange(len(paths)), **how)
        forward = time.perf_counter() - started
        return forward, seconds_of_report(probs_NK, paths, cache.parent / "evaluation")

    kept = partial(view_by_view, as_trained, store, few_N)
    return {KEPT: kept, TOGETHER: together, WHOLE: whole}


def seconds_of_report(probs_NK: np.ndarray, paths: list[Path], folder: Path) -> float:
    """Return how long metrics, intervals, figures and the page of some predictions take."""
    labels_N = labels_of(len(probs_NK))
    frame = pd.DataFrame(
        {
            "image_id": [path.stem for path in paths],
            "lesion_id": [f"lesion {number // 2}" for number in range(len(paths))],
            "dx": np.array(HAM10000_CODES)[labels_N],
            "dx_type": np.array(["histo", "follow_up"])[labels_N % 2],
            "age": labels_N * 10.0 + 20,
            "sex": np.array(["male", "female"])[labels_N % 2],
            "localization": np.array(["back", "face", "foot"])[labels_N % 3],
            "dataset": "drawn",
            "path": [str(path) for path in paths],
        }
    )
    config: Any = plain(composed("evaluate", ["checkpoint=none"]))
    started = time.perf_counter()
    found = results(
        labels_N,
        probs_NK,
        frame,
        HAM10000_CODES,
        config=config,
        fitted=None,
        why_not_fitted="not part of this measurement",
        unlike_N=None,
    )
    about: dict[str, Any] = {
        "split": "test",
        "data": "drawn",
        "leakage": None,
        "fitted_on_these": None,
        "tta": {"name": "off", "views": ["identity"], "aggregation": "mean"},
        "ensemble": None,
        "members": [],
        "logit_adjustment": None,
        "metadata_known": {},
    }
    write_evaluation(
        folder, labels_N, probs_NK, frame, HAM10000_CODES, unsure={}, found=found, about=about
    )
    return time.perf_counter() - started

"""Small models in checkpoints, as a run leaves them, and pictures for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from dermalyze.checkpoint_file import BEST, write_checkpoint
from dermalyze.config import CONF_DIR
from dermalyze.data.decode import PreprocessSpec
from dermalyze.data.metadata_features import MetadataEncoding
from dermalyze.run_folder import CONFIG

CLASSES = ("bcc", "mel", "own")
PIXELS_ALONE = MetadataEncoding(columns=(), age=(0.0, 1.0), categories={})
TOLD = MetadataEncoding(
    columns=("age", "sex", "localization"),
    age=(50.0, 10.0),
    categories={"sex": ("female", "male"), "localization": ("back", "face")},
)


def make_run(
    folder: Path,
    *,
    seed: int = 0,
    size: int = 32,
    encoding: MetadataEncoding = PIXELS_ALONE,
    balanced_accuracy: float = 0.5,
    **changes: Any,
) -> Path:
    """Make the folder of a run with a model whose answers depend on the image."""
    fusion = "film" if encoding.columns else "none"
    description = {
        "_target_": "dermalyze.models.classifier.build_classifier",
        "backbone": "test_resnet",
        "pretrained": False,
        "weights_file": None,
        "colour_constancy": "none",
        **{
            part: OmegaConf.to_container(OmegaConf.load(CONF_DIR / "model" / part / f"{name}.yaml"))
            for part, name in (("metadata", fusion), ("head", "linear"))
        },
    }
    torch.manual_seed(seed)
    network = instantiate(
        description,
        num_classes=len(CLASSES),
        input_size=size,
        unknown_metadata=encoding.unknown,
        _convert_="all",
    )
    for tensor in network.state_dict().values():
        if tensor.dtype.is_floating_point:
            tensor.add_((torch.rand_like(tensor) - 0.5) / 4)
    header = {
        "kind": "best",
        "model": description,
        "classes": list(CLASSES),
        "preprocess": PreprocessSpec(image_size=size).as_dict(),
        "metadata": encoding.as_dict(),
        "train_lesions": [],
        "val_lesions": [],
        "validation_metrics": {"val/balanced_accuracy": balanced_accuracy},
        "epoch": 1,
        "seed": seed,
        "split_fingerprint": "abc",
        "evaluation_batch_size": 4,
        **changes,
    }
    folder.mkdir(parents=True)
    write_checkpoint(folder / BEST, network.state_dict(), header)
    (folder / CONFIG).touch()
    return folder


def draw(path: Path, seed: int, side: tuple[int, int] = (40, 30)) -> Path:
    """Draw a picture (width, height) of a few coloured patches."""
    patches_HWC = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(patches_HWC).resize(side, Image.Resampling.NEAREST).save(path)
    return path

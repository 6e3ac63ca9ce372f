"""The usual style: torchvision's transforms, an image at a time, from JPEG files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import Dataset
from torchvision import transforms as v1
from torchvision.transforms import v2

from dermalyze.augmentation.pipeline import BatchAugmentation
from dermalyze.config import CONF_DIR


def medium() -> BatchAugmentation:
    """Return our own medium augmentation, as it is configured."""
    node = OmegaConf.load(CONF_DIR / "augmentation" / "medium.yaml")
    augmentation: BatchAugmentation = instantiate(node, _convert_="all")
    return augmentation


def transforms_of(augmentation: BatchAugmentation, kind: Any, *, size: int) -> list[Any]:
    """Return the transforms of torchvision that draw what an augmentation draws.

    Args:
        augmentation: with geometry, colour and blur; without shear and perspective, white balance
            and gamma, for which torchvision has other parameters.
        kind: `torchvision.transforms` or `torchvision.transforms.v2`.
        size: pixels.
    """
    parts: dict[str, Any] = augmentation.parts
    geometry, colour, blur = parts["geometry"], parts["colour"], parts["blur"]
    brightness, contrast, saturation, hue = colour.ranges
    shift, (rotation, affine_rotation) = geometry.translation, geometry.angles
    return [
        kind.Resize((size, size)),
        kind.RandomHorizontalFlip(geometry.flips[0]),
        kind.RandomVerticalFlip(geometry.flips[1]),
        kind.RandomRotation(rotation, interpolation=v1.InterpolationMode.BILINEAR),
        kind.RandomAffine(
            affine_rotation,
            (shift, shift),
            geometry.scale,
            interpolation=v1.InterpolationMode.BILINEAR,
        ),
        kind.ColorJitter(brightness, contrast, saturation, hue),
        kind.RandomApply([kind.GaussianBlur(blur.kernel_size, blur.sigma)], blur.probability),
    ]


def erasing_of(augmentation: BatchAugmentation, kind: Any) -> Any:
    """Return torchvision's transform of tensors that does what our cutout does."""
    cutout = augmentation.parts["cutout"]
    aspect = tuple(torch.tensor(cutout.log_aspect).exp().tolist())
    return kind.RandomErasing(cutout.probability, cutout.area, aspect)


class UsualFiles(Dataset[tuple[torch.Tensor, int]]):
    """JPEG files read, transformed and made tensors one by one, as most training code does it.

    Args:
        paths: the files.
        labels: their classes.
        read: path -> an image.
        change: image -> tensor.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int],
        *,
        read: Callable[[Path], Any],
        change: Callable[[Any], torch.Tensor],
    ) -> None:
        self.paths, self.labels, self.read, self.change = paths, labels, read, change

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        return self.change(self.read(self.paths[position])), self.labels[position]


def read_by_pillow(path: Path) -> Image.Image:
    """Return an RGB picture."""
    with Image.open(path) as image:
        return image.convert("RGB")


def read_as_tensor(path: Path) -> torch.Tensor:
    """Return image_CHW, uint8."""
    image_CHW: torch.Tensor = v2.functional.pil_to_tensor(read_by_pillow(path))
    return image_CHW


def pillow_files(paths: Sequence[Path], labels: Sequence[int], *, size: int) -> UsualFiles:
    """Return the files with the medium augmentation by torchvision's first transforms."""
    augmentation = medium()
    change = [*transforms_of(augmentation, v1, size=size), v1.ToTensor()]
    change.append(erasing_of(augmentation, v1))
    return UsualFiles(paths, labels, read=read_by_pillow, change=v1.Compose(change))


def tensor_files(paths: Sequence[Path], labels: Sequence[int], *, size: int) -> UsualFiles:
    """Return the files with the medium augmentation by torchvision's second, on uint8 tensors."""
    augmentation = medium()
    change = [*transforms_of(augmentation, v2, size=size), v2.ToDtype(torch.float32, scale=True)]
    change.append(erasing_of(augmentation, v2))
    return UsualFiles(paths, labels, read=read_as_tensor, change=v2.Compose(change))

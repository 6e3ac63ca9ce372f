"""Small images first: the size of training images as a function of the epoch."""

from __future__ import annotations

from dataclasses import dataclass

STEP = 32  # pixels: what most backbones reduce by, so that no map has a ragged border


@dataclass(frozen=True, kw_only=True)
class ImageSizes:
    """Image sizes that grow evenly to the full one (Tan and Le 2021, "EfficientNetV2", section 4).

    Attributes:
        first: pixels in epoch 0.
        last: pixels from epoch `growing_epochs` on, as in validation.
        growing_epochs: epochs before the full size is certain: since sizes are rounded to
            multiples of 32, the last of them may have it already; 0: every epoch has it.
    """

    first: int
    last: int
    growing_epochs: int

    def __call__(self, epoch: int) -> int:
        """Return the side of training images in pixels: multiples of 32, then the full size."""
        if epoch >= self.growing_epochs:
            return self.last
        grown = self.first + (self.last - self.first) * epoch / self.growing_epochs
        return min(max(STEP, round(grown / STEP) * STEP), self.last)

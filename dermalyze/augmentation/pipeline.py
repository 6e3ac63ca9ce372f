"""The augmentation of training batches: warp, colour, blur and cutout, in this order."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dermalyze.augmentation.blur import Blur
from dermalyze.augmentation.colour import Colour
from dermalyze.augmentation.geometry import Geometry
from dermalyze.augmentation.occlusion import Cutout


class BatchAugmentation:
    """Augment a whole batch on the device where it lies.

    What happens to an image is drawn on the host, so nothing waits for the device. One row of
    uniforms belongs to each position in the batch, with fixed columns for each part, whether the
    part is used or not. So an image's changes depend on the generator and on its position alone:
    not on the size of the batch, and those of one part not on which other parts are used.

    Args:
        geometry, colour, blur, cutout: the parts; None leaves a part out.
    """

    columns = Geometry.columns + Colour.columns + Blur.columns + Cutout.columns

    def __init__(
        self,
        *,
        geometry: Geometry | None,
        colour: Colour | None,
        blur: Blur | None,
        cutout: Cutout | None,
    ) -> None:
        self.geometry = geometry
        self.colour = colour
        self.blur = blur
        self.cutout = cutout

    def __call__(self, images_BCHW: Tensor, random: np.random.Generator) -> Tensor:
        """Return augmented copies of RGB images.

        Args:
            images_BCHW: uint8, of any memory format; not changed.
            random: fresh for each batch; advanced by `columns` uniforms for each image.

        Returns:
            float32 in [0, 255] (up to rounding) on the same device; without any part, the images
            themselves.
        """
        drawn = self.parameters(len(images_BCHW), random)
        if not drawn:
            return images_BCHW
        images = images_BCHW.to(torch.float32, copy=True)
        for part, parameters in drawn:
            images = part.apply(images, parameters)
        return images

    def parameters(self, batch_size: int, random: np.random.Generator) -> list[tuple[Any, Any]]:
        """Draw for a batch: the parts in use, in order, each with its parameters."""
        parts = (self.geometry, self.colour, self.blur, self.cutout)
        first_columns = np.cumsum([Geometry.columns, Colour.columns, Blur.columns])
        uniforms = np.split(random.random((batch_size, self.columns)), first_columns, axis=1)
        return [
            (part, part.parameters(uniform_BP))
            for part, uniform_BP in zip(parts, uniforms, strict=True)
            if part is not None
        ]

"""The augmentation of training batches: warp, artefacts, colour, field, blur and cutout."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dermalyze.augmentation.blur import Blur
from dermalyze.augmentation.bubbles import Bubbles
from dermalyze.augmentation.colour import Colour
from dermalyze.augmentation.field import Field
from dermalyze.augmentation.geometry import Geometry
from dermalyze.augmentation.hair import Hair
from dermalyze.augmentation.light import Light
from dermalyze.augmentation.occlusion import Cutout
from dermalyze.augmentation.ruler import Ruler
from dermalyze.errors import ConfigError

# The columns that each of these has in the row of uniforms that they share.
SHARED_COLUMNS = {
    "geometry": Geometry.columns,
    "colour": Colour.columns,
    "blur": Blur.columns,
    "cutout": Cutout.columns,
}
# Which stream of its own each part draws from. A new part is added at the end, and nothing is ever
# moved, so that what the others draw, and with it every earlier run, stays as it was.
STREAMS = ("geometry", "colour", "blur", "cutout", "hair", "ruler", "bubbles", "light", "field")


class BatchAugmentation:
    """Augment a whole batch on the device where it lies.

    What happens to an image is drawn on the host, so nothing waits for the device. One row of
    uniforms belongs to each position in the batch, with fixed columns for each part, whether the
    part is used or not; a part that needs more has a stream of its own, again with a row for each
    position. So an image's changes depend on the generator and on its position alone: not on the
    size of the batch, and those of one part not on which other parts are used.

    The parts act in the order in which light meets them: skin, what lies on it, the lamp, the
    camera's settings. The round field comes after these, since where no light arrives a camera
    shows black whatever its settings; blur and cutout come last.

    Args:
        geometry, hair, ruler, bubbles, light, colour, field, blur, cutout: the parts, in their
            order; None leaves a part out.
    """

    def __init__(
        self,
        *,
        geometry: Geometry | None,
        hair: Hair | None,
        ruler: Ruler | None,
        bubbles: Bubbles | None,
        light: Light | None,
        colour: Colour | None,
        field: Field | None,
        blur: Blur | None,
        cutout: Cutout | None,
    ) -> None:
        self.geometry = geometry
        self.parts: dict[str, Any] = {
            "geometry": geometry,
            "hair": hair,
            "ruler": ruler,
            "bubbles": bubbles,
            "light": light,
            "colour": colour,
            "field": field,
            "blur": blur,
            "cutout": cutout,
        }

    @property
    def is_off(self) -> bool:
        """Whether images stay as they are."""
        return all(part is None for part in self.parts.values())

    def __call__(
        self,
        images_BCHW: Tensor,
        random: np.random.Generator,
        *,
        size: int,
        positions_B: np.ndarray | None = None,
    ) -> Tensor:
        """Return augmented copies of RGB images, `size` x `size` pixels.

        The warp takes them out of the pictures it is given, which may be larger, and the other
        parts work on the result: their pixels are those of `size`.

        Args:
            images_BCHW: uint8, of any memory format; not changed.
            random: fresh for each batch; advanced by a row for each image, and by a child of its
                seed sequence for each part.
            size: side of the result in pixels.
            positions_B: of the images in the batch, where they are only some of it; None: all.

        Returns:
            float32 in [0, 255] (up to rounding) on the same device; without any part, the images
            themselves.

        Raises:
            ConfigError: without geometry nothing can bring images of another size to `size`.
        """
        if self.geometry is None and images_BCHW.shape[2:] != (size, size):
            raise ConfigError(
                f"augmentation.geometry=null: images of {tuple(images_BCHW.shape[2:])} pixels are "
                f"wanted at {size}, and only the warp changes sizes. Choose an augmentation with "
                "geometry, or data.cache_size=null."
            )
        if positions_B is None:
            positions_B = np.arange(len(images_BCHW))
        drawn = self.parameters(positions_B, random)
        if not drawn:
            return images_BCHW
        images = images_BCHW
        if self.geometry is None:  # its warp makes a new tensor of bytes, as fast as of floats
            images = images.to(torch.float32, copy=True)
        for part, parameters in drawn:
            if isinstance(part, Geometry):
                images = part.apply(images, parameters, (size, size))
            else:
                images = part.apply(images, parameters)
        return images

    def parameters(
        self, positions_B: np.ndarray, random: np.random.Generator
    ) -> list[tuple[Any, Any]]:
        """Draw for positions of a batch: the parts in use, in order, each with its parameters."""
        rows = int(positions_B.max()) + 1
        ends = np.cumsum(list(SHARED_COLUMNS.values()))
        shared_BP = random.random((rows, ends[-1]))[positions_B]
        shared = np.split(shared_BP, ends[:-1], axis=1)
        share_of = dict(zip(SHARED_COLUMNS, shared, strict=True))
        stream_of = dict(zip(STREAMS, random.spawn(len(STREAMS)), strict=True))
        drawn = []
        for name, part in self.parts.items():
            if part is None:
                continue
            own_BP = stream_of[name].random((rows, part.own_columns))[positions_B]
            uniforms = [share_of[name], own_BP] if name in share_of else [own_BP]
            drawn.append((part, part.parameters(np.concatenate(uniforms, axis=1))))
        return drawn

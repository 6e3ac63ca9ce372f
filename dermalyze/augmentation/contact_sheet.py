"""What an augmentation makes of images, side by side on one picture."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from dermalyze.augmentation.pipeline import BatchAugmentation
from dermalyze.randomness import Purpose, generator
from dermalyze.taxonomy import DISCLAIMER

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont  # the second where Pillow lacks FreeType

GAP = 2  # pixels between two pictures


def augmented_views(
    augment: BatchAugmentation, images_RSS3: np.ndarray, *, views: int, seed: int
) -> np.ndarray:
    """Return (R, 1 + views, S, S, 3) uint8: each image as it is, then as training would see it.

    The views are those of the first batch of the first, second, ... epoch of a run with this seed,
    if the batch were these images.

    Args:
        augment: the augmentation.
        images_RSS3: uint8 RGB, square.
        views: augmented pictures of each image.
        seed: >= 0.
    """
    images_RCSS = torch.from_numpy(images_RSS3).permute(0, 3, 1, 2)
    size = images_RCSS.shape[-1]
    seen = [
        augment(images_RCSS, generator(seed, Purpose.AUGMENTATION, epoch, 0), size=size)
        for epoch in range(views)
    ]
    shown = torch.stack([images_RCSS.float(), *(view.float() for view in seen)], dim=1)
    bytes_RVSS3 = shown.round().clamp(0, 255).byte().permute(0, 1, 3, 4, 2)
    return bytes_RVSS3.numpy()


def contact_sheet(views_RVSS3: np.ndarray, *, title: str) -> Image.Image:
    """Return a picture with a row an image, a column a view, a title above, a disclaimer below.

    Args:
        views_RVSS3: uint8; the first view of each image is the original.
        title: what was done, such as `augmentation=medium`; shortened where it is too wide.
    """
    rows, columns, size = views_RVSS3.shape[:3]
    line = max(16, size // 7)
    font, small = ImageFont.load_default(0.72 * line), ImageFont.load_default(0.55 * line)
    step = size + GAP
    sheet = Image.new("RGB", (columns * step - GAP, rows * step - GAP + 3 * line), "white")
    pen = ImageDraw.Draw(sheet)

    def write(text: str, middle: int, colour: str, typeface: Font) -> None:
        while pen.textlength(text, typeface) > sheet.width - 8 and len(text) > 2:
            text = f"{text[:-2]}…"
        pen.text((4, middle), text, colour, typeface, anchor="lm")

    write(title, line // 2, "black", font)
    write("first column: the image as it is", line * 3 // 2, "dimgrey", small)
    for row in range(rows):
        for column in range(columns):
            picture = Image.fromarray(views_RVSS3[row, column])
            sheet.paste(picture, (column * step, 2 * line + row * step))
    write(DISCLAIMER, sheet.height - line // 2, "dimgrey", small)
    return sheet

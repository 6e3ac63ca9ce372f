"""Contact sheets of augmentations, as a command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermalyze.taxonomy import DISCLAIMER

pytestmark = pytest.mark.slow


def a_folder(folder: Path) -> Path:
    """Three pictures of one colour each, one of them a folder deeper."""
    (folder / "deeper").mkdir(parents=True)
    for name, colour in {"a.png": "red", "b.JPG": "lime", "deeper/c.jpeg": "blue"}.items():
        Image.new("RGB", (40, 30), colour).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_a_sheet_of_any_folder(tmp_path, python):
    folder = a_folder(tmp_path / "pictures")
    done = python(
        *("-m", "dermalyze.show_augmentation", "augmentation=domain", f"images={folder}"),
        *("size=32", "rows=2", "views=3", "augmentation.hair.probability=1.0", "output=x/s.png"),
    )
    assert done.stdout.split("] ", 1)[1] == (
        "made x/s.png (2 images, 3 views of each)\n"
        "Next: python -m dermalyze.train augmentation=domain augmentation.hair.probability=1.0\n"
        f"{DISCLAIMER}\n"
    )
    with Image.open(tmp_path / "x" / "s.png") as sheet:
        pixels = np.asarray(sheet)
    # Four pictures of 32 pixels with gaps of 2, below two lines of 16 and above one.
    assert pixels.shape == (2 * 34 - 2 + 48, 4 * 34 - 2, 3)
    assert np.all(pixels[32:64, :32] == [255, 0, 0])  # the first and the last by name, as they are
    assert np.abs(pixels[66:98, :32].astype(int) - [0, 0, 255]).max() <= 2  # a JPEG
    views = pixels[32:64, 34:].reshape(32, -1, 3)
    assert np.all(views.std(axis=(0, 1)) > 5)


def test_a_sheet_of_a_data_set_shows_its_classes(tmp_path, python, phantoms):
    drawn = (
        *("data=synthetic", "data.source.lesions=84", "data.source.image_size=32"),
        *("data.source.imbalance=0.0", f"data.root={phantoms}"),
    )
    done = python(
        *("-m", "dermalyze.show_augmentation", *drawn, "size=32", "views=1", "compact=true")
    )
    assert (
        "made outputs/augmentation/medium.png (7 images, 1 views of each)\n"
        f"Next: python -m dermalyze.train augmentation=medium {' '.join(drawn)}\n"
    ) in done.stdout
    with Image.open(tmp_path / "outputs" / "augmentation" / "medium.png") as sheet:
        assert sheet.mode == "P"
        assert sheet.size == (66, 7 * 34 - 2 + 48)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["images=nowhere"], "images=nowhere: there is no such folder."),
        (["images=."], "images=.: no .jpg, .jpeg or .png in it or up to two folders below."),
        (["images=.", "output=s.jpg"], "output=s.jpg: a name that ends in .png is needed."),
    ],
)
def test_what_cannot_be_shown_is_refused(python, words, said):
    done = python("-m", "dermalyze.show_augmentation", *words, expect=2)
    assert said in done.stdout + done.stderr

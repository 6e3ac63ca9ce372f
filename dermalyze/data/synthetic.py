"""Phantom lesions: drawn pictures in HAM10000's layout, for demos and tests without real data.

They are drawn, not patients: a model trained on them knows nothing about skin.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from dermalyze.data.phantom_classes import CLINICS, LESIONS_IN_HAM10000
from dermalyze.data.phantom_drawing import draw_lesion, photograph
from dermalyze.data.table import HAM10000_COLUMNS, LesionTable, read_ham10000
from dermalyze.errors import ConfigError, DataError
from dermalyze.randomness import Purpose, generator
from dermalyze.taxonomy import HAM10000, HAM10000_CODES

DRAWING_VERSION = 1  # raise it with every change that changes a pixel or a row
MANIFEST = "phantoms.json"
TABLE = "HAM10000_metadata.csv"
DRAWN = "drawn, not patients"
README = f"""These images are {DRAWN}.

Dermalyze drew them for demonstrations and tests. Lesions, ages, sexes and localizations are made
up by a random generator; the parameters stand in {MANIFEST}. Nothing learned or measured here says
anything about skin or about disease.
"""

FEWEST_LESIONS = 6  # of a class: enough to train, validate and test on some
SHARES_OF_1_TO_4_IMAGES = (0.738, 0.190, 0.065, 0.007)  # a lesion, as in HAM10000
UNKNOWN = 0.02  # share of lesions without age, and likewise sex and localization


def lesions_by_class(*, lesions: int, imbalance: float) -> dict[str, int]:
    """Share lesions out over the classes, exactly, by the method of largest remainders.

    Args:
        lesions: how many in all.
        imbalance: power in [0, 1] that HAM10000's class counts are raised to: 1 is as uneven as
            HAM10000, 0 is even.

    Raises:
        DataError: a class would get fewer than `FEWEST_LESIONS`.
    """
    weights = np.array([LESIONS_IN_HAM10000[code] for code in HAM10000_CODES], float) ** imbalance
    shares = weights / weights.sum()
    counts = np.floor(shares * lesions).astype(int)
    by_remainder = np.argsort(counts - shares * lesions, kind="stable")
    counts[by_remainder[: lesions - counts.sum()]] += 1
    by_class = dict(zip(HAM10000_CODES, counts.tolist(), strict=True))
    if min(by_class.values()) < FEWEST_LESIONS:
        raise DataError(
            f"data.source.lesions={lesions} at data.source.imbalance={imbalance} gives "
            f"{', '.join(f'{code} {count}' for code, count in by_class.items())}; each class needs "
            f"at least {FEWEST_LESIONS} lesions. Use "
            f"data.source.lesions={math.ceil(FEWEST_LESIONS / shares.min())} or more, or a smaller "
            "data.source.imbalance."
        )
    return by_class


def draw_phantoms(
    *,
    root: str,
    lesions: int,
    image_size: int,
    imbalance: float,
    difficulty: float,
    one_session: bool,
    seed: int,
) -> None:
    """Draw a folder of phantom lesions, unless it is there already with the same parameters.

    The folder appears whole or not at all; whoever asks for it meanwhile waits. The same
    parameters give the same bytes (with the same Pillow and numpy).

    Args:
        root: the folder to make; `~` is expanded.
        lesions: how many lesions; about 26 % have two to four images.
        image_size: side of the square JPEG images, pixels, >= 32.
        imbalance: how uneven the classes are; see `lesions_by_class`.
        difficulty: in [0, 1], how much classes overlap: 0 is a textbook, 1 hardly tellable.
        one_session: whether all photographs of a lesion are by one device in one light, so that
            they are easily recognised as the same lesion, or each by another.
        seed: >= 0.

    Raises:
        ConfigError: a parameter out of its range.
        DataError: too few lesions of a class, or `root` holds something else.
    """
    faults = [
        f"data.source.{name}={value}: must be {valid}."
        for name, value, valid, is_valid in (
            ("image_size", image_size, "at least 32", image_size >= 32),
            ("imbalance", imbalance, "in [0, 1]", 0 <= imbalance <= 1),
            ("difficulty", difficulty, "in [0, 1]", 0 <= difficulty <= 1),
            ("seed", seed, "at least 0", seed >= 0),
        )
        if not is_valid
    ]
    if faults:
        raise ConfigError("\n".join(faults))
    by_class = lesions_by_class(lesions=lesions, imbalance=imbalance)
    manifest = {
        "what": DRAWN,
        "drawing_version": DRAWING_VERSION,
        "lesions": lesions,
        "image_size": image_size,
        "imbalance": float(imbalance),
        "difficulty": float(difficulty),
        "one_session": one_session,
        "seed": seed,
    }
    folder = Path(root).expanduser().resolve()
    if _is_drawn(folder, manifest):
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if _is_drawn(folder, manifest):  # by another process, while this one waited
                return
            # Under the lock nobody else draws here: what lies there was left by a killed run.
            unfinished = folder.parent / f".{folder.name}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            _draw(
                unfinished, by_class, image_size=image_size, difficulty=difficulty,
                one_session=one_session, seed=seed,
            )  # fmt: skip
            (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
            if folder.exists():
                folder.rmdir()  # empty, or _is_drawn would have refused it
            unfinished.rename(folder)
    except OSError as error:
        raise DataError(
            f"{folder}: phantoms cannot be drawn there: {error}. Make room or mend the rights, or "
            "draw elsewhere with data.root=DIR."
        ) from error


def read_phantoms(
    *,
    root: str,
    lesions: int,
    image_size: int,
    imbalance: float,
    difficulty: float,
    one_session: bool,
    seed: int,
) -> LesionTable:
    """Read a folder of phantom lesions, drawn first if it is not there; see `draw_phantoms`."""
    draw_phantoms(
        root=root, lesions=lesions, image_size=image_size, imbalance=imbalance,
        difficulty=difficulty, one_session=one_session, seed=seed,
    )  # fmt: skip
    return replace(read_ham10000(root=root, metadata=None, on_missing="error"), name="phantoms")


def contact_sheet(*, root: str, per_class: int) -> Image.Image:
    """Return an overview of a folder of phantoms: a row a class, each picture of another lesion."""
    folder = Path(root).expanduser().resolve()
    if not (folder / MANIFEST).is_file():
        raise DataError(f"{folder}: no {MANIFEST}, so no folder of phantoms. Draw them first.")
    with (folder / TABLE).open(encoding="utf-8", newline="") as file:
        first_of_lesion = {row["lesion_id"]: row for row in reversed(list(csv.DictReader(file)))}
    rows = sorted(first_of_lesion.values(), key=lambda row: row["lesion_id"])
    side = int(json.loads((folder / MANIFEST).read_text("utf-8"))["image_size"])
    line = max(14, side // 6)
    font = ImageFont.load_default(0.7 * line)
    sheet = Image.new("RGB", (per_class * side, line + len(HAM10000) * (line + side)), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((4, line // 2), f"Phantom lesions: {DRAWN}", "firebrick", font, anchor="lm")
    for position, lesion_class in enumerate(HAM10000):
        top = line + position * (line + side)
        title = f"{lesion_class.code}: {lesion_class.name}"
        pen.text((4, top + line // 2), title, "black", font, anchor="lm")
        pictures = [row["image_id"] for row in rows if row["dx"] == lesion_class.code][:per_class]
        for column, image_id in enumerate(pictures):
            with Image.open(folder / "images" / f"{image_id}.jpg") as picture:
                sheet.paste(picture, (column * side, top + line))
    return sheet


def _is_drawn(folder: Path, manifest: dict[str, Any]) -> bool:
    """Return whether the folder holds these phantoms (True) or nothing (False); else refuse it."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    elsewhere = "It is left as it is; draw elsewhere with data.root=DIR."
    try:
        found = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no folder of phantoms ({error}). {elsewhere}") from error
    if found != manifest:
        differing = [
            f"{name} is {found.get(name)!r} there and {value!r} here"
            for name, value in manifest.items()
            if found.get(name) != value
        ]
        raise DataError(f"{folder}: other phantoms: {', '.join(differing)}. {elsewhere}")
    return True


def _draw(
    folder: Path,
    by_class: dict[str, int],
    *,
    image_size: int,
    difficulty: float,
    one_session: bool,
    seed: int,
) -> None:
    """Draw everything but the manifest into a new folder."""
    (folder / "images").mkdir(parents=True)
    (folder / "README.txt").write_text(README, "utf-8")
    # Times of chance are (lesion from 1, use): use 0 is its record, 1 its drawing, 2... its images;
    # (lesion, 0, 0) is the session that they share.
    order = generator(seed, Purpose.PHANTOM, 0).permutation(sum(by_class.values()))
    dx_of_lesion = np.repeat(list(by_class), list(by_class.values()))[order].tolist()
    rows: list[dict[str, Any]] = []
    for lesion, dx in enumerate(tqdm(dx_of_lesion, "drawing phantoms", disable=None), 1):
        record = _record(generator(seed, Purpose.PHANTOM, lesion, 0), lesion, dx)
        drawn = draw_lesion(
            generator(seed, Purpose.PHANTOM, lesion, 1), dx, difficulty=difficulty, side=image_size
        )
        n_images = record.pop("n_images")
        for image in range(n_images):
            image_id = f"PHANTOM_IMG_{len(rows) + 1:07d}"
            session = generator(seed, Purpose.PHANTOM, lesion, 0, 0) if one_session else None
            view = generator(seed, Purpose.PHANTOM, lesion, 2 + image)
            picture = photograph(view, drawn, session=session, side=image_size)
            picture.save(folder / "images" / f"{image_id}.jpg", quality=90)
            rows.append(record | {"image_id": image_id})
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, HAM10000_COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def _record(rng: np.random.Generator, lesion: int, dx: str) -> dict[str, Any]:
    """Make up a patient: the values that all images of the lesion share, and `n_images`."""
    clinic = CLINICS[dx]
    age = int(np.clip(5 * round(rng.normal(*clinic.age) / 5), 5, 85))
    sites = np.array(list(clinic.localization.values()), float)
    no_age, no_sex, no_site = rng.random(3) < UNKNOWN
    return {
        "n_images": int(rng.choice(4, p=SHARES_OF_1_TO_4_IMAGES)) + 1,
        "lesion_id": f"PHANTOM_{lesion:07d}",
        "dx": dx,
        "dx_type": rng.choice(list(clinic.dx_type), p=list(clinic.dx_type.values())),
        "age": "" if no_age else age,
        "sex": "unknown" if no_sex else ("male" if rng.random() < clinic.male else "female"),
        "localization": "unknown"
        if no_site
        else rng.choice(list(clinic.localization), p=sites / sites.sum()),
    }

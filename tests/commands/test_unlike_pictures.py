"""Pictures of other things, shown to a trained model: evaluation flags them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images

from dermalyze.taxonomy import HAM10000_CODES

pytestmark = pytest.mark.slow

EACH = 8


def pictures() -> dict[str, list[Image.Image]]:
    rng = np.random.default_rng(0)
    kinds: dict[str, list[Image.Image]] = {"noise": [], "china": [], "flower": [], "text": []}
    photographs = zip(("china", "flower"), load_sample_images().images, strict=True)
    for name, photograph in photographs:
        for _ in range(EACH):
            top, left = rng.integers(0, 200, 2)
            kinds[name].append(Image.fromarray(photograph[top : top + 200, left : left + 200]))
    for _ in range(EACH):
        kinds["noise"].append(Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)))
        page = Image.new("RGB", (128, 128), "white")
        words = "\n".join("".join(rng.choice(list("abc def ghi"), 20)) for _ in range(8))
        ImageDraw.Draw(page).text((4, 4), words, fill="black")
        kinds["text"].append(page)
    return kinds


def test_photographs_text_and_noise_are_flagged(trained, python, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    folder = tmp_path / "others"
    folder.mkdir()
    rows = []
    for kind, drawn in pictures().items():
        for number, picture in enumerate(drawn):
            picture.save(folder / f"{kind}{number}.png")
            rows.append((f"{kind}{number}.png", f"{kind}{number}", "nv"))
    table = pd.DataFrame(rows, columns=["image_id", "lesion_id", "dx"])
    table.to_csv(folder / "table.csv", index=False)

    evaluate = ("-m", "dermalyze.evaluate", f"checkpoint={run}", "track=false")
    python(*evaluate)
    own = json.loads((run / "evaluation/test/evaluation_metrics.json").read_text())
    limit = own["unlike_training"]["flag_above"]
    classes = f"data.source.classes=[{','.join(HAM10000_CODES)}]"
    other = ("data=folder", f"data.root={folder}", classes, "split=all", "output=others_seen")
    python(*evaluate, *other)
    report = json.loads((tmp_path / "others_seen/evaluation_metrics.json").read_text())
    seen = pd.read_csv(tmp_path / "others_seen/predictions.csv")
    assert report["unlike_training"]["flag_above"] == limit
    assert (seen["unlike_training"] > limit).tolist() == seen["unlike_training_flag"].tolist()
    flagged = seen.groupby(seen["image_id"].str.rstrip("0123456789"))["unlike_training_flag"].mean()

    # The roofs and walls of "china" are of the colours of skin, and this model is barely trained.
    assert flagged.drop("china").to_dict() == dict.fromkeys(("flower", "noise", "text"), 1.0)
    assert flagged["china"] > 2 * own["unlike_training"]["flagged"]

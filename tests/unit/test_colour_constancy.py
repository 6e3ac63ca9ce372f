from __future__ import annotations

from functools import partial

import pytest
import torch

from dermalyze.config import target_problems
from dermalyze.models.classifier import Classifier, build_classifier
from dermalyze.models.colour_constancy import shades_of_grey
from dermalyze.models.heads.simple import SimpleHead
from dermalyze.models.metadata.none import NoMetadata


def pictures(count: int, *, low: int = 0, high: int = 256) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(low, high, (count, 3, 24, 32), generator=random).float()


def of_colour(*colours: tuple[float, float, float]) -> torch.Tensor:
    """One image, a pixel a colour."""
    return torch.tensor(colours).T[None, :, :, None]


def classifier(colour_constancy: str) -> Classifier:
    torch.manual_seed(0)
    model = build_classifier(
        backbone="test_resnet",
        pretrained=False,
        weights_file=None,
        colour_constancy=colour_constancy,  # type: ignore[arg-type]
        metadata=partial(NoMetadata, columns=()),
        head=partial(SimpleHead, dropout=0.0, hidden=()),
        num_classes=3,
        input_size=32,
        unknown_metadata={},
    )
    return model.eval()


def test_one_colour_becomes_grey_by_hand() -> None:
    # e = (200, 100, 50), |e| / sqrt(3) = sqrt((40000 + 10000 + 2500) / 3) = 132.2876
    expected = torch.full((1, 3, 1, 1), 132.2876)
    torch.testing.assert_close(
        shades_of_grey(of_colour((200.0, 100.0, 50.0))), expected, rtol=0, atol=1e-3
    )


def test_two_colours_by_hand() -> None:
    # Of 64 and 128 the Minkowski mean is 128 ((2^-6 + 1) / 2)^(1/6) = 128 * 0.893204 = 114.3301;
    # |e| / sqrt(3) of (114.3301, 100, 80) is sqrt((13071.37 + 10000 + 6400) / 3) = 99.1150.
    balanced = shades_of_grey(of_colour((64.0, 100.0, 80.0), (128.0, 100.0, 80.0)))
    expected = of_colour((55.4829, 99.1150, 99.1150), (110.9658, 99.1150, 99.1150))
    torch.testing.assert_close(balanced, expected, rtol=0, atol=1e-3)


def test_grey_stays_as_it_is() -> None:
    images = pictures(2)[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(shades_of_grey(images), images, rtol=1e-5, atol=0)


def test_a_cast_changes_nothing_but_the_brightness() -> None:
    images = pictures(3, low=20)
    cast = images * torch.tensor([1.0, 0.7, 0.45])[:, None, None]
    balanced, recast = shades_of_grey(images), shades_of_grey(cast)
    brightness = (recast / balanced).mean(dim=(1, 2, 3), keepdim=True)
    assert (brightness < 0.85).all()
    torch.testing.assert_close(recast, balanced * brightness, rtol=1e-5, atol=0)


def test_a_black_surround_changes_nothing() -> None:
    images = pictures(2, low=20)
    surrounded = torch.nn.functional.pad(images, (40, 40, 30, 30))
    balanced = shades_of_grey(surrounded)
    torch.testing.assert_close(
        balanced[..., 30:-30, 40:-40], shades_of_grey(images), rtol=1e-5, atol=0
    )
    assert balanced[..., :30, :].max() == 0


def test_images_do_not_depend_on_their_batch() -> None:
    images = pictures(4)
    torch.testing.assert_close(shades_of_grey(images)[2:3], shades_of_grey(images[2:3]))


def test_what_holds_no_light_stays_dark_and_finite() -> None:
    black = torch.zeros(1, 3, 8, 8)
    assert torch.equal(shades_of_grey(black), black)
    no_blue = pictures(1) * torch.tensor([1.0, 1.0, 0.0])[:, None, None]
    balanced = shades_of_grey(no_blue)
    assert balanced.isfinite().all()
    assert balanced[:, 2].max() == 0


@pytest.mark.parametrize("image_type", [torch.uint8, torch.float32])
def test_the_model_balances_before_it_normalises(image_type: torch.dtype) -> None:
    model, plain = classifier("shades_of_grey"), classifier("none")
    images = (pictures(2) * torch.tensor([1.0, 0.6, 0.4])[:, None, None]).to(image_type)
    with torch.inference_mode():
        expected = plain.feature_map(shades_of_grey(images.float()))
        torch.testing.assert_close(model.feature_map(images), expected, rtol=0, atol=1e-5)
        assert (plain.feature_map(images) - expected).abs().max() > 0.05


def test_a_mistyped_method_is_refused_with_the_valid_ones() -> None:
    node = {
        "_target_": "dermalyze.models.classifier.build_classifier",
        "backbone": "resnet10t",
        "pretrained": False,
        "weights_file": None,
        "metadata": {"_target_": "dermalyze.models.metadata.none.NoMetadata"},
        "head": {"_target_": "dermalyze.models.heads.simple.SimpleHead"},
    }
    (problem,) = target_problems("model", {**node, "colour_constancy": "grey_world"})
    assert problem == (
        "model.colour_constancy='grey_world' (str): Input should be 'none' or 'shades_of_grey'"
    )

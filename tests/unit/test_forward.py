from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from dermalyze.compute import Precision
from dermalyze.data.batches import ImageStore
from dermalyze.errors import DataError
from dermalyze.inference.forward import predict_probabilities

CPU = torch.device("cpu")
FP32 = Precision(CPU, None)
PIXELS = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 3), dtype=np.uint8)
STORE = ImageStore(
    images_NHWC=PIXELS, image_ids=[f"ISIC_{row:03}" for row in range(len(PIXELS))], device=CPU
)
ROWS = np.array([7, 0, 3, 10, 3, 1, 9])


class Net(nn.Module):
    """With BatchNorm and dropout, which both differ between training and prediction."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(24, 4),
        )

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        logits_BK: torch.Tensor = self.layers(images_BCHW.float() / 255)
        return logits_BK


@pytest.fixture
def model() -> Net:
    net = Net()
    with torch.no_grad():  # statistics other than those BatchNorm begins with
        for rows in (range(4), range(4, 11)):
            net(STORE.batch(np.array(rows)))
    return net


def by_hand(model: nn.Module, rows: np.ndarray) -> np.ndarray:
    """Return the softmax one image at a time, in NumPy."""
    model.eval()
    probs = []
    for row in rows:
        image = torch.tensor(PIXELS[row]).permute(2, 0, 1)[None]
        with torch.no_grad():
            logits = model(image).double().numpy()[0]
        exponentials = np.exp(logits - logits.max())
        probs.append(exponentials / exponentials.sum())
    return np.stack(probs)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_probabilities_equal_the_softmax_by_hand_in_order(model, batch_size):
    expected = by_hand(model, ROWS)
    probs = predict_probabilities(model, STORE, ROWS, batch_size=batch_size, precision=FP32)
    assert probs.dtype == np.float64
    assert probs.shape == (len(ROWS), 4)
    np.testing.assert_allclose(probs, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=0, atol=1e-15)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3  # an order that can be mixed up


def test_the_batch_size_changes_nothing(model):
    one = predict_probabilities(model, STORE, ROWS, batch_size=1, precision=FP32)
    all_at_once = predict_probabilities(model, STORE, ROWS, batch_size=64, precision=FP32)
    np.testing.assert_allclose(one, all_at_once, rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_comes_back_as_it_was(model, training):
    model.train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    predict_probabilities(model, STORE, ROWS, batch_size=2, precision=FP32)
    assert [module.training for module in model.modules()] == [training] * 9
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert "layers.1.running_mean" in before
    assert all(parameter.grad is None for parameter in model.parameters())
    # and can be trained on: nothing of inference mode sticks to it
    model(STORE.batch(ROWS)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_no_chance_is_drawn(model):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = predict_probabilities(model, STORE, ROWS, batch_size=3, precision=FP32)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    other = predict_probabilities(model, STORE, ROWS, batch_size=3, precision=FP32)
    assert np.array_equal(one, other)


def test_bf16_stays_near_fp32(model):
    half = Precision(CPU, torch.bfloat16)
    probs = predict_probabilities(model, STORE, ROWS, batch_size=3, precision=half)
    expected = by_hand(model, ROWS)
    assert probs.dtype == np.float64
    assert 0 < np.abs(probs - expected).max() < 0.01
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=0, atol=1e-15)


class Fixed(nn.Module):
    """Logits by the first pixel of an image."""

    def __init__(self, logits_of: dict[int, list[float]]) -> None:
        super().__init__()
        self.logits_of = logits_of

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        firsts = images_BCHW[:, 0, 0, 0].tolist()
        return torch.tensor([self.logits_of.get(first, [1.0, 2.0]) for first in firsts])


def test_far_apart_logits_keep_their_tiny_probability():
    model = Fixed({int(PIXELS[0, 0, 0, 0]): [0.0, 50.0]})
    probs = predict_probabilities(model, STORE, np.array([0]), batch_size=1, precision=FP32)
    expected = [math.exp(-50) / (1 + math.exp(-50)), 1 / (1 + math.exp(-50))]
    np.testing.assert_allclose(probs[0], expected, rtol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_name_their_images(bad):
    firsts = PIXELS[:, 0, 0, 0]
    assert len(set(firsts[[3, 9, 7, 0]])) == 4
    model = Fixed({int(firsts[3]): [bad, 0.0], int(firsts[9]): [0.0, bad]}).train()
    rows = np.array([7, 3, 0, 9])
    with pytest.raises(DataError) as caught:
        predict_probabilities(model, STORE, rows, batch_size=3, precision=FP32)
    assert "2 of 4 images" in str(caught.value)
    assert "ISIC_003, ISIC_009)" in str(caught.value)
    assert model.training


def test_at_most_five_images_are_named():
    model = Fixed({int(first): [math.nan, 0.0] for first in PIXELS[:, 0, 0, 0]})
    with pytest.raises(DataError, match="11 of 11 images") as caught:
        predict_probabilities(model, STORE, np.arange(11), batch_size=4, precision=FP32)
    assert str(caught.value).count("ISIC_") == 5


def test_minus_infinity_is_a_probability_of_zero():
    model = Fixed({int(PIXELS[0, 0, 0, 0]): [0.0, -math.inf]})
    probs = predict_probabilities(model, STORE, np.array([0]), batch_size=1, precision=FP32)
    assert probs.tolist() == [[1.0, 0.0]]

"""Metadata in the model: fusions, what they are told where nothing is known, the classifier."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from dermalyze.config import CONF_DIR, check_targets
from dermalyze.errors import ConfigError
from dermalyze.models.classifier import Classifier, build_classifier
from dermalyze.models.heads.linear import LinearHead
from dermalyze.models.metadata.concat import Concat
from dermalyze.models.metadata.film import Film
from dermalyze.models.metadata.fused import FusedMetadata
from dermalyze.models.metadata.metablock import MetaBlock
from dermalyze.models.metadata.none import NoMetadata

OPTIONS = sorted(path.stem for path in (CONF_DIR / "model" / "metadata").glob("*.yaml"))
FUSIONS = [name for name in OPTIONS if name != "none"]
HEADS = sorted(path.stem for path in (CONF_DIR / "model" / "head").glob("*.yaml"))
UNKNOWN = {"age": [0.0, 1.0], "sex": [0.0, 0.0, 1.0], "localization": [0.0, 1.0]}
UNKNOWN_M = [0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0]


def from_yaml(group: str, name: str) -> Any:
    node = OmegaConf.load(CONF_DIR / "model" / group / f"{name}.yaml")
    check_targets({group: OmegaConf.to_container(node)})
    return instantiate(node, _convert_="all")


def fused(name: str = "film", *, channels: int = 6) -> Any:
    torch.manual_seed(0)
    unknown = {} if name == "none" else UNKNOWN
    return from_yaml("metadata", name)(in_features=channels, unknown_metadata=unknown)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stirred(module: nn.Module) -> None:
    """Give every weight a value of its own: a fresh FiLM changes nothing."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random))


def test_film_by_hand() -> None:
    """Two channels, one number m: hidden relu(2m - 1); scales 1 + h, 1 - h; shifts 10h, 5."""
    film = Film(in_features=2, metadata_features=1, hidden=1)
    with torch.no_grad():
        film.hidden.weight.fill_(2.0)
        film.hidden.bias.fill_(-1.0)
        film.modulation.weight.copy_(torch.tensor([[1.0], [-1.0], [10.0], [0.0]]))
        film.modulation.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 5.0]))
    features_BCHW = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]]).repeat(2, 1, 1, 1)
    modulated = film(features_BCHW, torch.tensor([[2.0], [0.0]]))  # h = 3 and 0
    assert modulated[0].tolist() == [[[4 * 1 + 30, 4 * 2 + 30]], [[-2 * 3 + 5, -2 * 4 + 5]]]
    assert modulated[1].tolist() == [[[1, 2]], [[3 + 5, 4 + 5]]]
    assert film.out_channels == 2


def test_a_fresh_film_changes_nothing() -> None:
    film = Film(in_features=5, metadata_features=3, hidden=8)
    features_BCHW = normal(4, 5, 2, 3)
    assert torch.equal(film(features_BCHW, 10 * normal(4, 3)), features_BCHW)


def test_a_film_learns_from_its_second_step_on_with_all_its_weights() -> None:
    torch.manual_seed(0)
    film = Film(in_features=5, metadata_features=3, hidden=8)
    optimizer = torch.optim.SGD(film.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (
            film(normal(4, 5, 2, 3), normal(4, 3, seed=1)) - normal(4, 5, 1, 1, seed=2)
        ).square().sum().backward()
        optimizer.step()
    for name, parameter in film.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_concat_by_hand() -> None:
    concat = Concat(in_features=1, metadata_features=2, width=2)
    with torch.no_grad():
        concat.embedding.weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 0.0]]))
        concat.embedding.bias.copy_(torch.tensor([0.5, 0.0]))
    joined = concat(torch.tensor([[[[7.0, 8.0]]]]), torch.tensor([[3.0, 1.0]]))
    assert joined.tolist() == [[[[7.0, 8.0]], [[5.5, 5.5]], [[0.0, 0.0]]]]
    assert concat.out_channels == 3


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_metablock_by_hand() -> None:
    """One channel; in evaluation BatchNorm is (x - mean) / sqrt(var + 1e-5) * weight + bias."""
    block = MetaBlock(in_features=1, metadata_features=1).eval()
    values = {
        "scale.0.weight": 2.0,
        "scale.0.bias": 1.0,
        "scale.1.running_mean": 3.0,
        "scale.1.running_var": 4.0,
        "scale.1.weight": 1.5,
        "scale.1.bias": 0.25,
        "shift.0.weight": -1.0,
        "shift.0.bias": 0.5,
        "shift.1.running_mean": 0.0,
        "shift.1.running_var": 1.0,
        "shift.1.weight": 1.0,
        "shift.1.bias": 0.0,
    }
    state = block.state_dict()
    for name, value in values.items():
        state[name].fill_(value)
    scale = (2 * 5 + 1 - 3) / math.sqrt(4 + 1e-5) * 1.5 + 0.25
    shift = (-5 + 0.5) / math.sqrt(1 + 1e-5)
    gated = block(torch.tensor([[[[0.1, -0.3]]]]), torch.tensor([[5.0]]))
    expected = [sigmoid(math.tanh(scale * x) + shift) for x in (0.1, -0.3)]
    assert gated.flatten().tolist() == pytest.approx(expected, rel=1e-5)
    assert block.out_channels == 1
    assert sum(parameter.numel() for parameter in block.parameters()) == 2 * (2 + 2)


# What every fusion does


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", OPTIONS)
def test_every_head_works_with_every_fusion(name: str, head: str) -> None:
    fusion = fused(name, channels=24)
    top = from_yaml("head", head)(in_features=fusion.out_channels, num_classes=5)
    features_BCHW = normal(4, 24, 3, 3).requires_grad_()
    metadata_BM = None if name == "none" else normal(4, 7, seed=1)
    map_BCHW = fusion(features_BCHW, metadata_BM)
    assert map_BCHW.shape == (4, fusion.out_channels, 3, 3)
    logits_BK = top(map_BCHW)
    assert logits_BK.shape == (4, 5)
    nn.functional.cross_entropy(logits_BK, torch.arange(4)).backward()
    assert features_BCHW.grad is not None
    assert features_BCHW.grad.abs().sum() > 0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", FUSIONS)
def test_no_metadata_equals_rows_in_which_nothing_is_known(name: str, training: bool) -> None:
    fusion = fused(name).train(training)
    stirred(fusion)
    fusion.dropout = 0.0
    features_BCHW = normal(4, 6, 3, 3)
    nothing = fusion(features_BCHW, None)
    assert torch.equal(nothing, fusion(features_BCHW, torch.tensor([UNKNOWN_M] * 4)))
    assert not torch.allclose(nothing, fusion(features_BCHW, normal(4, 7)))


@pytest.mark.parametrize("name", FUSIONS)
def test_an_image_does_not_see_its_batch_in_evaluation(name: str) -> None:
    fusion = fused(name).eval()
    stirred(fusion)
    features_BCHW, metadata_BM = normal(5, 6, 3, 3), normal(5, 7)
    alone = [fusion(features_BCHW[[row]], metadata_BM[[row]]) for row in range(5)]
    torch.testing.assert_close(fusion(features_BCHW, metadata_BM), torch.cat(alone))


class Told(nn.Module):
    """Hands on what it is told: metadata_BM as a map of one position."""

    def __init__(self, *, in_features: int, metadata_features: int) -> None:
        super().__init__()
        self.out_channels = metadata_features

    def forward(self, features_BCHW: Tensor, metadata_BM: Tensor) -> Tensor:
        return metadata_BM[:, :, None, None]


def told(dropout: float) -> FusedMetadata:
    columns = tuple(UNKNOWN)
    return FusedMetadata(
        columns=columns, dropout=dropout, fusion=Told, in_features=3, unknown_metadata=UNKNOWN
    )


def test_metadata_is_dropped_as_a_whole_with_its_chance() -> None:
    """Within 4 standard errors of 0.3, over 10,000 images; what is kept is untouched."""
    images = 10_000
    fusion, metadata_BM = told(0.3), normal(images, 7)
    torch.manual_seed(3)
    seen_BM = fusion(torch.zeros(images, 3, 1, 1), metadata_BM)[:, :, 0, 0]
    dropped_B = (seen_BM == torch.tensor(UNKNOWN_M)).all(dim=1)
    assert torch.equal(seen_BM[~dropped_B], metadata_BM[~dropped_B])
    error = math.sqrt(0.3 * 0.7 / images)
    assert float(dropped_B.float().mean()) == pytest.approx(0.3, abs=4 * error)
    torch.manual_seed(3)
    again_BM = fusion(torch.zeros(images, 3, 1, 1), metadata_BM)[:, :, 0, 0]
    assert torch.equal(again_BM, seen_BM)  # a function of torch's seed


def test_nothing_is_dropped_or_drawn_in_evaluation() -> None:
    metadata_BM = normal(50, 7)
    before = torch.get_rng_state()
    seen = told(0.9).eval()(torch.zeros(50, 3, 1, 1), metadata_BM)
    assert torch.equal(seen[:, :, 0, 0], metadata_BM)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_numbers_for_unknown_are_no_weight() -> None:
    assert list(told(0.3).state_dict()) == []


# What is refused


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (partial(told, 1.0), "model.metadata.dropout=1.0: a chance in [0, 1)"),
        (
            partial(Film, in_features=2, metadata_features=1, hidden=0),
            "model.metadata.fusion.hidden=0:",
        ),
        (
            partial(Concat, in_features=2, metadata_features=1, width=-1),
            "model.metadata.fusion.width=-1:",
        ),
        (
            partial(
                FusedMetadata,
                columns=("sex", "age", "localization"),
                dropout=0.0,
                fusion=Told,
                in_features=3,
                unknown_metadata=UNKNOWN,
            ),
            "model.metadata.columns=['sex', 'age', 'localization']: the metadata at hand are those "
            "of ['age', 'sex', 'localization']",
        ),
        (
            partial(
                FusedMetadata,
                columns=(),
                dropout=0.0,
                fusion=Told,
                in_features=3,
                unknown_metadata={},
            ),
            "a model without metadata is model/metadata=none",
        ),
        (
            partial(NoMetadata, columns=(), in_features=3, unknown_metadata=UNKNOWN),
            "takes no metadata, but there are those of ['age', 'sex', 'localization']",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make: partial[nn.Module], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert said in str(error.value)


# In the classifier


def classifier(metadata: Any, unknown: dict[str, list[float]]) -> Classifier:
    torch.manual_seed(0)
    return build_classifier(
        backbone="test_resnet",
        pretrained=False,
        weights_file=None,
        colour_constancy="none",
        metadata=metadata,
        head=partial(LinearHead, dropout=0.0, normalized=False, scale=1.0, learnable_scale=False),
        num_classes=3,
        input_size=32,
        unknown_metadata=unknown,
    )


IMAGES = torch.randint(
    0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


@pytest.mark.parametrize("name", FUSIONS)
def test_a_model_with_metadata_predicts_without(name: str) -> None:
    model = classifier(from_yaml("metadata", name), UNKNOWN).eval()
    stirred(model.metadata)
    metadata_BM = normal(4, 7)
    with torch.inference_mode():
        without = model(IMAGES)
        assert torch.equal(without, model(IMAGES, torch.tensor([UNKNOWN_M] * 4)))
        with_BK = model(IMAGES, metadata_BM)
        pixels_BCHW = model.backbone((IMAGES.float() - model.mean) / model.std)
        assert torch.equal(model.feature_map(IMAGES), pixels_BCHW)
        expected = model.head(model.metadata(pixels_BCHW, metadata_BM))
        assert torch.equal(model.classify(pixels_BCHW, metadata_BM), expected)
        assert torch.equal(with_BK, expected)
    assert not torch.allclose(with_BK, without)


def test_a_model_of_pixels_alone_refuses_metadata() -> None:
    model = classifier(partial(NoMetadata, columns=()), {})
    with pytest.raises(ValueError, match="takes no metadata"):
        model(IMAGES, normal(4, 7))


def test_a_fresh_film_is_the_model_without_metadata() -> None:
    """The same backbone and head; the fusion is built between them, so the head is copied over."""
    plain = classifier(partial(NoMetadata, columns=()), {}).eval()
    model = classifier(from_yaml("metadata", "film"), UNKNOWN).eval()
    model.head.load_state_dict(plain.head.state_dict())
    with torch.inference_mode():
        assert torch.equal(model(IMAGES, normal(4, 7)), plain(IMAGES))

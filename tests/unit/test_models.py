from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import save_file
from timm.optim import param_groups_weight_decay
from torch import nn

from dermalyze.compute import Precision
from dermalyze.config import CONF_DIR, register_resolvers
from dermalyze.data.batches import ImageStore
from dermalyze.data.metadata_features import MetadataEncoding
from dermalyze.distributed import ALONE, Ranks
from dermalyze.engine.step import TrainingStep
from dermalyze.errors import ConfigError
from dermalyze.models.backbone import Backbone
from dermalyze.models.classifier import Classifier, build_classifier
from dermalyze.models.heads.acrnn import AcrnnHead
from dermalyze.models.heads.simple import SimpleHead
from dermalyze.models.metadata.none import NoMetadata
from dermalyze.recipe import build
from dermalyze.schema import checked_run
from dermalyze.taxonomy import HAM10000_CODES

HEADS = sorted(path.stem for path in (CONF_DIR / "model" / "head").glob("*.yaml"))


def backbone(name: str = "test_resnet", *, image_size: int = 32, **changes: Any) -> Backbone:
    options: dict[str, Any] = {"pretrained": False, "weights_file": None, **changes}
    return Backbone(name=name, image_size=image_size, **options)


def test_sizes_that_a_network_does_not_take_are_refused_when_it_is_made() -> None:
    body = backbone("inception_v3", image_size=96)
    with pytest.raises(ConfigError, match=r"inception_v3 takes no images of 32 pixels \(Runtime"):
        body.check_sizes([32, 64])
    body = backbone()
    body.check_sizes([32, 64])
    assert body.training


def test_a_tag_that_timm_does_not_know_is_told_as_such() -> None:
    with pytest.raises(ConfigError) as refused:
        backbone("resnet18.a1_in2k")
    assert str(refused.value) == (
        f"model.backbone=resnet18.a1_in2k: timm {timm.__version__} has no weights 'a1_in2k' of "
        "resnet18. Did you mean 'resnet18.a1_in1k'?"
    )


def test_what_a_gradient_needs_is_not_overwritten() -> None:
    """Else autograd copies it first, in every step: 3 to 6 % of one of an EfficientNet on a CPU."""
    network = backbone("efficientnet_b0").network
    acting = [module for module in network.modules() if isinstance(module, torch.nn.SiLU)]
    assert [module.inplace for module in acting] == [False] * 49


@pytest.mark.parametrize(
    "name", ["mobilenetv3_small_050", "convnext_atto", "test_vit", "test_resnet"]
)
def test_every_parameter_makes_the_map_and_all_weights_keep_their_names(name: str) -> None:
    """Processes that share a batch wait for the gradient of each parameter."""
    size = 160 if name == "test_vit" else 32
    body = backbone(name, image_size=size)
    body(torch.rand(2, 3, size, size)).sum().backward()
    assert [n for n, p in body.named_parameters() if p.grad is None] == []
    timms = timm.create_model(name, num_classes=0, global_pool="")
    assert body.network.state_dict().keys() == timms.state_dict().keys()
    all_weights = dict(timms.named_parameters()).keys()
    with torch.inference_mode():  # where nothing is trained
        untrained = backbone(name, image_size=size).network
    assert dict(untrained.named_parameters()).keys() == all_weights
    made_buffers = all_weights - dict(body.network.named_parameters()).keys()
    assert made_buffers == {
        "mobilenetv3_small_050": {"conv_head.weight", "conv_head.bias"},
        "convnext_atto": {"head.norm.weight", "head.norm.bias"},
    }.get(name, set())


def linear_head(*, in_features: int, num_classes: int) -> nn.Module:
    return SimpleHead(in_features=in_features, num_classes=num_classes, dropout=0.0, hidden=())


def classifier(name: str = "test_resnet", *, input_size: int = 32, classes: int = 5) -> Classifier:
    torch.manual_seed(0)
    return build_classifier(
        backbone=name,
        pretrained=False,
        weights_file=None,
        colour_constancy="none",
        metadata=partial(NoMetadata, columns=()),
        head=linear_head,
        num_classes=classes,
        input_size=input_size,
        unknown_metadata={},
    )


def pictures(count: int, size: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=random)


# The classifier


def test_bytes_and_floats_give_equal_logits():
    model = classifier().eval()
    images = pictures(3, 32)
    with torch.inference_mode():
        logits = model(images)
        assert torch.equal(logits, model(images.float()))
    assert logits.shape == (3, 5)
    assert logits.dtype == torch.float32


def test_normalisation_is_the_backbones_and_is_done_once():
    """By hand: (x / 255 - mean) / std with the numbers ImageNet networks were trained with."""
    model = classifier("resnet10t").eval()
    assert model.backbone.mean == (0.485, 0.456, 0.406)
    assert model.backbone.std == (0.229, 0.224, 0.225)
    images = pictures(2, 32)
    mean = torch.tensor([0.485, 0.456, 0.406])[None, :, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[None, :, None, None]
    with torch.inference_mode():
        expected = model.backbone((images / 255 - mean) / std)
        torch.testing.assert_close(model.feature_map(images), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(model(images), model.head(expected), rtol=0, atol=1e-5)


def test_normalisation_follows_the_backbone():
    """These weights were trained with mean and standard deviation 0.5."""
    model = classifier("test_vit")
    assert model.backbone.mean == model.backbone.std == (0.5, 0.5, 0.5)
    torch.testing.assert_close(model.mean, torch.full((1, 3, 1, 1), 127.5))
    torch.testing.assert_close(model.std, torch.full((1, 3, 1, 1), 127.5))


def test_normalisation_is_no_weight():
    model = classifier()
    assert not {"mean", "std"} & set(model.state_dict())
    assert not {"mean", "std"} & {name for name, _ in model.named_parameters()}


def test_convolutions_are_channels_last():
    weights = [p for p in classifier().parameters() if p.ndim == 4 and p[0, 0].numel() > 1]
    assert len(weights) > 5
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_the_same_seed_builds_the_same_model():
    one, other = classifier().state_dict(), classifier().state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_new_model_trains_and_has_seen_no_image():
    model = classifier()
    assert all(module.training for module in model.modules())
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert tensor == 0
        if name.endswith("running_mean"):
            assert tensor.abs().max() == 0


# The backbone


@pytest.mark.parametrize(
    ("name", "image_size", "side"),
    [
        ("test_resnet", 64, 2),
        ("test_efficientnet", 64, 2),
        ("test_convnext", 64, 2),
        ("test_mambaout", 64, 2),  # channels last
        ("swin_tiny_patch4_window7_224", 64, 2),  # channels last
        ("test_vit", 64, 4),  # tokens with a class token
        ("test_vit3", 64, 4),  # tokens without
        ("test_maxvit", 64, 2),
    ],
)
def test_every_kind_of_network_gives_a_map(name, image_size, side):
    net = backbone(name, image_size=image_size).eval()
    with torch.inference_mode():
        features = net(torch.randn(2, 3, image_size, image_size))
    assert features.shape == (2, net.out_channels, side, side)


@pytest.mark.parametrize("name", ["test_vit", "swin_tiny_patch4_window7_224", "test_resnet"])
def test_the_map_lies_as_the_image_does(name):
    """Move a bright spot: the position that changes most is the one under it, row by column."""
    torch.manual_seed(0)
    size, side = (64, 4) if name == "test_vit" else (128, 4)
    net = backbone(name, image_size=size).eval()
    cell = size // side
    with torch.inference_mode():
        dark = net(torch.zeros(1, 3, size, size))
        for row, column in ((0, 0), (0, 3), (2, 1), (3, 2)):
            image = torch.zeros(1, 3, size, size)
            image[..., row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = 3.0
            change = (net(image) - dark).norm(dim=1)[0]
            assert divmod(int(change.argmax()), side) == (row, column)


def test_tokens_equal_timms_own():
    net = backbone("test_vit", image_size=64).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        tokens = net.network.forward_features(image)
        features = net(image)
    assert tokens.shape == (1, 17, 64)
    for position in range(16):
        row, column = divmod(position, 4)
        assert torch.equal(features[0, :, row, column], tokens[0, 1 + position])


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'resnet50'"):
        backbone("resnet5O")
    with pytest.raises(
        ConfigError, match=r"model\.backbone=no_such_net: timm .* has no such model"
    ):
        backbone("no_such_net")
    with pytest.raises(ConfigError, match=r"timm \S+ has no weights 'nope' of test_resnet\. "):
        backbone("test_resnet.nope")


@pytest.mark.parametrize(
    ("name", "image_size"),
    [("test_vit", 40), ("levit_128s", 224), ("deit_tiny_distilled_patch16_224", 224)],
)
def test_a_network_without_a_map_is_refused_at_once(name, image_size):
    with pytest.raises(ConfigError, match=f"no feature map for images of {image_size}") as caught:
        backbone(name, image_size=image_size)
    assert f"model.backbone={name}" in str(caught.value)
    assert "data.image_size" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "image_size", "unread"),
    [
        ("vit_tiny_patch16_224", 48, 0),
        ("vit_tiny_patch16_224", 40, 8),  # patches of 16
        ("test_convnext", 65, 1),  # a first stride of 4
        ("test_resnet", 33, 0),
        ("tf_efficientnet_lite0", 33, 0),  # padded as much as is needed
    ],
)
def test_a_border_that_a_network_does_not_read_is_counted(name, image_size, unread):
    body = backbone(name, image_size=image_size).eval()
    assert body.unread_border(image_size) == unread
    noise = torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    for columns, matters in ((unread, False), (unread + 1, True)):
        changed = noise.clone()
        changed[..., image_size - columns :] = 9.0
        with torch.no_grad():
            assert torch.equal(body(noise), body(changed)) is not matters


def test_a_run_is_told_of_a_border_that_is_not_read(caplog):
    config = checked_run(
        composed("model=timm", "model.backbone=vit_tiny_patch16_224", "model.pretrained=false",
                 "data.image_size=40", head="linear")
    )  # fmt: skip
    build(config, **run_data(image_size=40))
    assert [record.getMessage() for record in caplog.records] == [
        "data.image_size=40: vit_tiny_patch16_224 reads nothing of the last 8 rows and columns of "
        "an image. It reads all of them with data.image_size=32"
    ]


# Weights


@pytest.mark.parametrize("error", [OSError("no network"), RuntimeError(""), KeyError("a\nb")])
def test_weights_that_cannot_be_had_are_an_error_with_two_mends(monkeypatch, error):
    def create_model(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
        assert pretrained
        raise error

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(ConfigError) as caught:
        backbone(pretrained=True)
    message = str(caught.value)
    assert "the weights of test_resnet could not be had from timm's hub" in message
    assert type(error).__name__ in message
    assert "model.pretrained=false" in message
    assert "model.weights_file=FILE" in message


def saved(network: nn.Module, path: Path) -> str:
    tensors = dict(network.state_dict())
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return str(path)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("pretrained", [True, False])
def test_a_local_file_of_weights_is_loaded_whole(tmp_path, name, suffix, pretrained):
    size = 160  # what these networks are made for
    torch.manual_seed(1)
    source = timm.create_model(name)
    for buffer in source.buffers():
        buffer.add_(1)
    file = saved(source, tmp_path / f"weights{suffix}")
    torch.manual_seed(2)
    net = backbone(name, image_size=size, pretrained=pretrained, weights_file=file)
    loaded, expected = net.network.state_dict(), source.state_dict()
    assert len(loaded) > 40
    beyond = expected.keys() - loaded.keys()
    assert 1 <= len(beyond) <= 4  # the classifier's, and of ViT the norm before it
    for key, tensor in loaded.items():
        assert torch.equal(tensor, expected[key]), key


def test_a_file_without_a_classifier_is_enough(tmp_path):
    source = timm.create_model("test_resnet", num_classes=0)
    net = backbone(weights_file=saved(source, tmp_path / "x.safetensors"))
    assert torch.equal(net.network.conv1[0].weight, source.conv1[0].weight)


def test_positions_of_a_vit_are_fitted_to_another_image_size(tmp_path):
    source = timm.create_model("test_vit")
    net = backbone("test_vit", image_size=64, weights_file=saved(source, tmp_path / "x.pth"))
    assert source.pos_embed.shape == (1, 101, 64)
    assert net.network.pos_embed.shape == (1, 17, 64)
    # The class token's own position does not depend on the grid.
    torch.testing.assert_close(net.network.pos_embed[:, 0], source.pos_embed[:, 0])


class Harm:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_files_that_are_not_this_backbones_weights_are_refused(tmp_path):
    source = timm.create_model("test_resnet")
    half = {key: value for key, value in source.state_dict().items() if "layer3" not in key}
    save_file(half, tmp_path / "half.safetensors")
    save_file({"foreign": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    saved(timm.create_model("test_efficientnet"), tmp_path / "other.safetensors")
    wide = source.state_dict() | {"conv1.0.weight": torch.zeros(1, 3, 3, 3)}
    save_file(wide, tmp_path / "wide.safetensors")
    (tmp_path / "text.pth").write_text("not weights")
    torch.save({"state_dict": Harm(tmp_path / "harm")}, tmp_path / "harmful.pth")
    problems = {
        "half.safetensors": "lacks 20 tensors of this backbone, such as layer3",
        "foreign.safetensors": "lacks 75 tensors",
        "other.safetensors": "size mismatch for bn1.weight",
        "wide.safetensors": "size mismatch for conv1.0.weight",
        "text.pth": "",
        "harmful.pth": "weights_only",
        "missing.pth": "no such file",
    }
    for name, problem in problems.items():
        with pytest.raises(ConfigError) as caught:
            backbone(weights_file=str(tmp_path / name))
        assert problem in str(caught.value), name
        assert f"could not be had from {tmp_path / name}" in str(caught.value)
        assert "with model.weights_file=null model.pretrained=false" in str(caught.value)
    assert not (tmp_path / "harm").exists()


def test_a_network_that_cannot_recompute_is_refused() -> None:
    words = ["model=timm", "model.backbone=dla46_c", "model.pretrained=false"]
    config = checked_run(composed(*words, "training.grad_checkpointing=true", head="linear"))
    with pytest.raises(ConfigError) as refused:
        build(config, **run_data(image_size=32))
    assert str(refused.value) == (
        "training.grad_checkpointing=true: dla46_c has no layers that timm can run twice. Leave it "
        "out, or choose another backbone."
    )


def test_all_sizes_of_growing_images_are_tried_when_the_network_is_made() -> None:
    words = ["model=timm", "model.backbone=inception_v3", "model.pretrained=false"]
    growing = ["training.first_image_size=32", "training.growing_epochs=3", "data.image_size=96"]
    config = checked_run(composed(*words, *growing, head="linear"))
    with pytest.raises(ConfigError, match="inception_v3 takes no images of 32 pixels"):
        build(config, **run_data(image_size=96))


# Parameter groups


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_biases_and_norms_are_not_decayed(name, head):
    config = checked_run(
        composed("model=timm", f"model.backbone={name}", "model.pretrained=false", head=head)
    )
    state, _ = build(config, **run_data(image_size=32))
    groups = state.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.0, 0.02]
    names = {id(parameter): name for name, parameter in state.model.named_parameters()}
    plain, decayed = ([names[id(p)] for p in group["params"]] for group in groups)
    assert sorted(plain + decayed) == sorted(names.values())
    shapes = {name: parameter.ndim for name, parameter in state.model.named_parameters()}
    norms = {
        f"{path}.{name}"
        for path, module in state.model.named_modules()
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm))
        for name, _ in module.named_parameters(recurse=False)
    }
    assert norms
    assert norms <= set(plain)
    assert {name for name in names.values() if name.endswith("bias")} <= set(plain)
    assert {name for name, dimensions in shapes.items() if dimensions == 4} <= set(decayed)
    assert any(name.startswith("head.") and name.endswith("weight") for name in decayed)


def test_weight_decay_groups_by_hand():
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    plain, decayed = param_groups_weight_decay(layers, 0.1)
    assert (plain["weight_decay"], decayed["weight_decay"]) == (0.0, 0.1)
    assert [id(p) for p in decayed["params"]] == [id(layers[0].weight), id(layers[3].weight)]
    assert {id(p) for p in plain["params"]} == {
        id(layers[0].bias),
        id(layers[1].weight),
        id(layers[1].bias),
        id(layers[3].bias),
    }


# The default model, whole


def composed(*overrides: str, head: str) -> Any:
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("train", overrides=[*overrides, f"model/head={head}"])


def run_data(*, image_size: int) -> dict[str, Any]:
    """Return what `build` needs of 14 images, two of each class; the first of each to train on."""
    labels = np.repeat(np.arange(7), 2)
    pixels = np.random.default_rng(0).integers(
        0, 256, (14, image_size, image_size, 3), dtype=np.uint8
    )
    store = ImageStore(
        images_NHWC=pixels, image_ids=[f"ISIC_{i}" for i in range(14)], device=torch.device("cpu")
    )
    return {
        "store": store,
        "labels_N": labels,
        "train_rows_M": np.arange(0, 14, 2),
        "num_classes": len(HAM10000_CODES),
        "encoding": MetadataEncoding(columns=(), age=(0.0, 1.0), categories={}),
        "precision": Precision(torch.device("cpu"), None),
        "ranks": ALONE,
    }


@pytest.mark.parametrize("head", HEADS)
def test_one_training_step_of_the_default_model(head):
    """EfficientNet-V2-S at 224 pixels as conf/train.yaml makes it, but from scratch."""
    config = checked_run(composed("model.pretrained=false", head=head))
    assert config["data"]["image_size"] == 224
    data = run_data(image_size=224)
    state, step = build(config, **data)
    assert isinstance(step, TrainingStep)
    assert isinstance(state.model, Classifier)
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    gradients: dict[str, torch.Tensor] = {}
    for name, parameter in state.model.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: gradients.update({name: p.grad.clone()})
        )
    maps: list[torch.Tensor] = []
    state.model.head.register_forward_pre_hook(lambda module, args: maps.append(args[0].detach()))

    step(state, [data["train_rows_M"][:2]], 0)

    assert [features.shape for features in maps] == [(2, 1280, 7, 7)]
    loss = state.step_losses_S[0].item()
    assert math.isfinite(loss)
    assert loss > 0
    assert gradients.keys() == before.keys()
    assert len(before) > 400
    for name, gradient in gradients.items():
        assert torch.isfinite(gradient).all(), name
        assert gradient.abs().max() > 0, name
    for name, parameter in state.model.named_parameters():
        assert torch.isfinite(parameter).all(), name
        assert not torch.equal(parameter, before[name]), name
    if isinstance(state.model.head, AcrnnHead):
        logits, attention = state.model.head.attend(maps[0])
        assert logits.shape == (2, 7)
        assert attention.shape == (2, 7, 7)
        assert attention.min() >= 0
        torch.testing.assert_close(attention.sum(dim=(1, 2)), torch.ones(2))


class Unwrapped(Ranks):
    """Several ranks of which this process is the only one; nothing may be exchanged."""

    def wrapped(self, model: nn.Module) -> nn.Module:
        return model


def test_synchronised_batch_norm_keeps_the_activations_inside_timms_layers():
    overrides = ["model.backbone=test_efficientnet", "model.pretrained=false", "data.image_size=32"]
    data = run_data(image_size=32)

    def model(*more: str, size: int) -> nn.Module:
        config = checked_run(composed("model=timm", *overrides, *more, head="simple"))
        return build(config, **{**data, "ranks": Unwrapped(0, size)})[0].model.eval()

    asked = "training.sync_batch_norm=true"
    plain, several, alone = model(size=2), model(asked, size=2), model(asked, size=1)
    kinds = [
        {
            type(module)
            for module in each.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        }
        for each in (plain, several, alone)
    ]
    assert not any(issubclass(kind, nn.SyncBatchNorm) for kind in kinds[0] | kinds[2])
    assert all(issubclass(kind, nn.SyncBatchNorm) for kind in kinds[1])
    assert kinds[0] == kinds[2]
    assert kinds[1]
    images = data["store"].batch(np.arange(14))
    with torch.inference_mode():
        assert torch.equal(several(images), plain(images))

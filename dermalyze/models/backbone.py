"""Any timm backbone as a feature map: images in, features_BCHW out."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from dermalyze.errors import ConfigError, nearest
from dermalyze.models.autograd_graph import readers_of

# Their gradient needs what came in, so that training would copy it before it is overwritten.
_KEEP_INPUT = (nn.SiLU, nn.Hardswish, nn.Mish)


class Backbone(nn.Module):
    """A timm network without its own pooling and classifier.

    Convolutional maps, channels-last maps (Swin) and tokens (ViT) all come out as (B, C, H, W),
    so that every head works on every backbone. Weights that the map does not come from (timm keeps
    some that only its own classifier needs) are buffers: nothing trains them, averages them, or
    waits for their gradients in another process.

    Args:
        name: timm's name, with or without the tag of its weights.
        pretrained: load ImageNet weights, from `weights_file` where given.
        weights_file: a local file (.safetensors or .pth) with weights for this backbone.
        image_size: side of the square input in pixels; fixed-size networks are built for it.

    Attributes:
        out_channels: C of the feature map.
        mean, std: RGB normalisation these weights were trained with, in [0, 1].

    Raises:
        ConfigError: unknown name, a network without a feature map, or weights that cannot be had.
    """

    def __init__(
        self, *, name: str, pretrained: bool, weights_file: str | None, image_size: int
    ) -> None:
        super().__init__()
        check_name(name)
        self.name = name
        self.network: Any = _create(name, pretrained, weights_file, image_size)
        for module in self.network.modules():
            if isinstance(module, _KEEP_INPUT):
                module.inplace = False
        self.out_channels = int(self.network.num_features)
        config: dict[str, Any] = self.network.pretrained_cfg
        self.mean: tuple[float, ...] = tuple(float(value) for value in config["mean"])
        self.std: tuple[float, ...] = tuple(float(value) for value in config["std"])
        self._keep_unread_as_buffers(self._first_map(image_size))

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return features_BCHW of normalised images_BCHW."""
        features: torch.Tensor = self.network.forward_features(images_BCHW)
        if features.ndim == 3:  # tokens: drop class and register tokens, lay the rest on the grid
            tokens_BNC = features[:, getattr(self.network, "num_prefix_tokens", 0) :]
            height, width = self.network.patch_embed.grid_size
            map_BCHW: torch.Tensor = tokens_BNC.transpose(1, 2).unflatten(2, (height, width))
            return map_BCHW
        if getattr(self.network, "output_fmt", "NCHW") == "NHWC":
            return features.permute(0, 3, 1, 2)
        return features

    def check_sizes(self, sizes: Iterable[int]) -> None:
        """Try sizes of training images other than the one that the network was built for.

        Raises:
            ConfigError: one that does not fit.
        """
        device = next(self.parameters()).device
        for size in sizes:
            try:
                with torch.no_grad():
                    self.eval()(torch.zeros(1, 3, size, size, device=device))
            except (AssertionError, RuntimeError) as error:
                raise ConfigError(
                    f"training.first_image_size: {self.name} takes no images of {size} pixels "
                    f"({_why(error)}). Begin with larger ones."
                ) from error
        self.train()

    def unread_border(self, image_size: int) -> int:
        """Return how many of an image's last rows, and columns, the first convolution leaves out.

        One whose stride does not divide an image's side, such as that of a ViT's patches, leaves
        out what is over, on two sides. timm's convolutions that pad as much as is needed leave out
        none.
        """
        stem = next((m for m in self.network.modules() if isinstance(m, nn.Conv2d)), None)
        embedding = getattr(self.network, "patch_embed", None)
        if type(stem) is not nn.Conv2d or getattr(embedding, "dynamic_img_pad", False):
            return 0
        if isinstance(stem.padding, str):
            return 0
        padding, kernel, stride = stem.padding[0], stem.kernel_size[0], stem.stride[0]
        return max(0, (image_size + 2 * padding - kernel) % stride - padding)

    def _first_map(self, image_size: int) -> torch.Tensor:
        """Try one image: a network without a map, or one that this size does not fit, shows here.

        Not in inference mode: networks that keep a tensor for later could not be trained with it.
        """
        try:
            with torch.enable_grad():
                map_BCHW: torch.Tensor = self.eval()(torch.zeros(1, 3, image_size, image_size))
            shape = map_BCHW.shape
        except (AssertionError, AttributeError, RuntimeError) as error:
            raise _no_map(self.name, image_size, _why(error)) from error
        if len(shape) != 4 or shape[1] != self.out_channels:
            raise _no_map(self.name, image_size, f"its features are {tuple(shape)}")
        self.train()
        return map_BCHW

    def _keep_unread_as_buffers(self, map_BCHW: torch.Tensor) -> None:
        """Make buffers, under the same names, of parameters that no gradient of the map reaches.

        In inference mode, where no graph is kept, nothing is trained: all stay as they are.
        """
        if map_BCHW.grad_fn is None:
            return
        # Where a gradient is added to a parameter's, the node knows the parameter.
        nodes = readers_of(map_BCHW)
        read = {node.variable for node in nodes if hasattr(node, "variable")}
        for module in self.network.modules():
            for name, parameter in [*module.named_parameters(recurse=False)]:
                if parameter not in read:
                    delattr(module, name)
                    module.register_buffer(name, parameter.detach())


def check_name(name: str) -> None:
    """Raise a ConfigError, with the nearest that it has, for what timm does not know.

    That is a network, or a tag of its weights.
    """
    network, _, tag = name.partition(".")
    if not timm.is_model(name):
        known = nearest(network, timm.list_models())
        raise ConfigError(
            f"model.backbone={name}: timm {timm.__version__} has no such model.{known}"
        )
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        known = nearest(name, timm.list_pretrained(network))
        raise ConfigError(
            f"model.backbone={name}: timm {timm.__version__} has no weights {tag!r} of "
            f"{network}.{known}"
        ) from error


def check_backbone(*, name: str, images_grow: bool) -> None:
    """Find out what can be known of a network before it is made.

    Args:
        name: timm's.
        images_grow: whether training images begin smaller.

    Raises:
        ConfigError: timm does not know it, or images may not change their size.
    """
    check_name(name)
    if images_grow and _takes_one_size(name):
        raise ConfigError(
            f"training.first_image_size: {name} is built for images of one size, data.image_size. "
            "Leave out first_image_size and growing_epochs, or choose a convolutional network."
        )


def _takes_one_size(name: str) -> bool:
    known = timm.get_pretrained_cfg(name)
    return known is not None and bool(known.fixed_input_size)


def _create(name: str, pretrained: bool, weights_file: str | None, image_size: int) -> Any:
    options: dict[str, Any] = {"num_classes": 0, "global_pool": ""}
    from_hub = pretrained and weights_file is None
    # Hub, network, cache and file errors share no base class, and neither do timm's refusals of an
    # option; whichever it is, the user's mends are the same, and the cause is named.
    try:
        if _takes_one_size(name):
            options["img_size"] = image_size
        network = timm.create_model(name, pretrained=from_hub, **options)
        if weights_file is not None:
            _load_weights(network, weights_file)
    except Exception as error:
        if not pretrained and weights_file is None:
            raise _no_map(name, image_size, _why(error)) from error
        asked, source = "model.pretrained=true", "timm's hub"
        scratch, file = "model.pretrained=false", "a local"
        if weights_file is not None:
            asked, source = f"model.weights_file={weights_file}", weights_file
            scratch, file = "model.weights_file=null model.pretrained=false", "another"
        raise ConfigError(
            f"{asked}: the weights of {name} could not be had from {source} ({_why(error)}). Train "
            f"from scratch with {scratch}, or name {file} file of this backbone's weights with "
            "model.weights_file=FILE."
        ) from error
    return network


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _no_map(name: str, image_size: int, why: str) -> ConfigError:
    return ConfigError(
        f"model.backbone={name}: gives no feature map for images of {image_size} pixels ({why}). "
        "Choose another data.image_size, or another backbone: convolutional networks, ViT and Swin "
        "Transformers have one."
    )


def _load_weights(network: Any, weights_file: str) -> None:
    """Fill the whole backbone from a file; what the file has beyond it (a classifier) is left out.

    timm's own loading of a file passes over tensors that are missing, as it expects a classifier
    to be; a file of another network would then load nothing and say nothing.
    """
    if not Path(weights_file).is_file():
        raise FileNotFoundError("there is no such file")
    # Some networks rename older weights or fit them to the image's size.
    adapt = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    missing, _ = timm.models.load_checkpoint(
        network, weights_file, strict=False, filter_fn=adapt, weights_only=True
    )
    if missing:
        raise ValueError(f"it lacks {len(missing)} tensors of this backbone, such as {missing[0]}")

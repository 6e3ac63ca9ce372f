"""The whole network: uint8 images in, logits out, normalisation inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from dermalyze.models.backbone import Backbone
from dermalyze.models.colour_constancy import METHODS, ColourConstancy


class Classifier(nn.Module):
    """Normalisation, backbone, metadata and head.

    Normalisation, with colour constancy where it is wanted, is part of the model, so that nobody
    can forget it or do it twice: the input is uint8, or float in [0, 255] after augmentation.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        *,
        backbone: Backbone,
        metadata: nn.Module,
        head: nn.Module,
        colour_constancy: ColourConstancy,
    ) -> None:
        super().__init__()
        self.white_balanced = METHODS[colour_constancy]
        self.backbone = backbone
        self.metadata = metadata
        self.head = head
        # Not saved: they follow from the backbone, whose name the checkpoint knows.
        for name, values in (("mean", backbone.mean), ("std", backbone.std)):
            tensor = torch.tensor(values).reshape(1, 3, 1, 1) * 255.0
            self.register_buffer(name, tensor, persistent=False)
        # Images arrive with their channels last; weights in the same format spare a copy a layer.
        self.lay_out(torch.channels_last)

    def forward(
        self, images_BCHW: torch.Tensor, metadata_BM: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return logits_BK for RGB images_BCHW, uint8 or float in [0, 255].

        metadata_BM are the numbers of `dermalyze.data.metadata_features`; None: a model that takes
        metadata predicts as it does where nothing is known of an image.
        """
        return self.classify(self.feature_map(images_BCHW), metadata_BM)

    def feature_map(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return the backbone's features_BCHW for images as `forward` takes them."""
        images_BCHW = images_BCHW.to(torch.float32, memory_format=self.memory_format)
        normalised_BCHW = (self.white_balanced(images_BCHW) - self.mean).div_(self.std)
        features_BCHW: torch.Tensor = self.backbone(normalised_BCHW)
        return features_BCHW

    def classify(
        self, features_BCHW: torch.Tensor, metadata_BM: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return logits_BK for the backbone's features_BCHW, fused with metadata."""
        logits_BK: torch.Tensor = self.head(self.metadata(features_BCHW, metadata_BM))
        return logits_BK

    def lay_out(self, memory_format: torch.memory_format) -> None:
        """Keep weights, and images on their way through, in a memory format of torch."""
        self.memory_format = memory_format
        self.to(memory_format=memory_format)


def build_classifier(
    *,
    backbone: str,
    pretrained: bool,
    weights_file: str | None,
    colour_constancy: ColourConstancy,
    metadata: Callable[..., nn.Module],
    head: Callable[..., nn.Module],
    num_classes: int,
    input_size: int,
    unknown_metadata: Mapping[str, Sequence[float]],
) -> Classifier:
    """Build the network that `conf/model` describes.

    Args:
        backbone: timm's name of the backbone.
        pretrained: start from ImageNet weights.
        weights_file: a local file of backbone weights to start from, or None.
        colour_constancy: how the colour of the light is taken out of each image first; see
            `dermalyze.models.colour_constancy`.
        metadata: called with `in_features` and `unknown_metadata`; maps (features_BCHW,
            metadata_BM or None) to a map of `out_channels` channels.
        head: called with `in_features` and `num_classes`; maps features_BCHW to logits_BK.
        num_classes: K.
        input_size: side of the square input in pixels.
        unknown_metadata: the numbers of each column of metadata where its value is not known;
            empty for a model that sees pixels alone.

    Raises:
        ConfigError: unknown backbone, or weights that cannot be had.
    """
    body = Backbone(
        name=backbone, pretrained=pretrained, weights_file=weights_file, image_size=input_size
    )
    fusion = metadata(in_features=body.out_channels, unknown_metadata=unknown_metadata)
    top = head(in_features=fusion.out_channels, num_classes=num_classes)
    return Classifier(backbone=body, metadata=fusion, head=top, colour_constancy=colour_constancy)

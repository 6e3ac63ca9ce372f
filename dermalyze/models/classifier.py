"""The whole network: uint8 images in, logits out, normalisation inside."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from dermalyze.models.backbone import Backbone


class Classifier(nn.Module):
    """Normalisation, backbone and head.

    Normalisation is part of the model, so that nobody can forget it or do it twice: the input is
    uint8, or float in [0, 255] after augmentation.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, *, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        # Not saved: they follow from the backbone, whose name the checkpoint knows.
        for name, values in (("mean", backbone.mean), ("std", backbone.std)):
            tensor = torch.tensor(values).reshape(1, 3, 1, 1) * 255.0
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return logits_BK for RGB images_BCHW, uint8 or float in [0, 255]."""
        logits: torch.Tensor = self.head(self.features(images_BCHW))
        return logits

    def features(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return the backbone's features_BCHW, which heads and explanations look at."""
        features: torch.Tensor = self.backbone((images_BCHW.float() - self.mean) / self.std)
        return features


def build_classifier(
    *,
    backbone: str,
    pretrained: bool,
    weights_file: str | None,
    head: Callable[..., nn.Module],
    num_classes: int,
    input_size: int,
) -> Classifier:
    """Build the network that `conf/model` describes.

    Args:
        backbone: timm's name of the backbone.
        pretrained: start from ImageNet weights.
        weights_file: a local file of backbone weights to start from, or None.
        head: called with `in_features` and `num_classes`; maps features_BCHW to logits_BK.
        num_classes: K.
        input_size: side of the square input in pixels.

    Raises:
        ConfigError: unknown backbone, or weights that cannot be had.
    """
    body = Backbone(
        name=backbone, pretrained=pretrained, weights_file=weights_file, image_size=input_size
    )
    top = head(in_features=body.out_channels, num_classes=num_classes)
    # Images arrive with their channels last; weights in the same format spare a copy per layer.
    return Classifier(backbone=body, head=top).to(memory_format=torch.channels_last)

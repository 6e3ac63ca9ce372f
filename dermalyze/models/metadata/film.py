"""Feature-wise linear modulation: the metadata scale and shift each channel."""

from __future__ import annotations

from torch import Tensor, nn

from dermalyze.models.ranges import require_width


class Film(nn.Module):
    """Scale and shift each channel c of the feature map F, as the metadata m say.

        FiLM(F_c) = (1 + g_c(m)) * F_c + b_c(m),  [g, b] = Linear(ReLU(Linear(m)))

    Perez et al. (2018, "FiLM: visual reasoning with a general conditioning layer", eq. 2), who
    also let the network find the difference of the scale from 1. The last layer begins with zeros:
    a fresh model is the model without metadata, so that ImageNet weights are not disturbed.

    Args:
        in_features: C, channels of the feature map.
        metadata_features: M.
        hidden: width of the layer between metadata and modulation.

    Attributes:
        out_channels: C.

    Raises:
        ConfigError: a width below 1.
    """

    def __init__(self, *, in_features: int, metadata_features: int, hidden: int) -> None:
        super().__init__()
        require_width("model.metadata.fusion.hidden", hidden)
        self.out_channels = in_features
        self.hidden = nn.Linear(metadata_features, hidden)
        self.modulation = nn.Linear(hidden, 2 * in_features)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, features_BCHW: Tensor, metadata_BM: Tensor) -> Tensor:
        """Return the modulated map, of the same shape."""
        modulation_BC11 = self.modulation(self.hidden(metadata_BM).relu())[:, :, None, None]
        scale_BC11, shift_BC11 = modulation_BC11.chunk(2, dim=1)
        modulated: Tensor = (1 + scale_BC11) * features_BCHW + shift_BC11
        return modulated

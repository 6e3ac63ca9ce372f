"""Gated attention over the positions of the feature map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dermalyze.models.ranges import require_chance, require_width


class AttentionHead(nn.Module):
    """Weigh the positions of the feature map by gated attention, add them up, classify the sum.

        a = softmax_t(w . (tanh(V h_t) * sigmoid(U h_t))),  z = sum_t a_t h_t

    where h_t are the F channels at position t: Ilse, Tomczak and Welling (2018, "Attention-based
    deep multiple instance learning", eq. 9 and 7, which have no biases), with an image's positions
    as the bag.

    Args:
        in_features: F, channels of the feature map.
        num_classes: K.
        hidden: width of V h_t and U h_t.
        dropout: chance that an entry of z is dropped, in [0, 1).

    Raises:
        ConfigError: a value out of its range.
    """

    def __init__(self, *, in_features: int, num_classes: int, hidden: int, dropout: float) -> None:
        super().__init__()
        require_width("model.head.hidden", hidden)
        require_chance("model.head.dropout", dropout)
        self.values = nn.Linear(in_features, hidden, bias=False)
        self.gates = nn.Linear(in_features, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(in_features, num_classes)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Return logits_BK of features_BCHW (B, F, H, W)."""
        logits_BK, _ = self.attend(features_BCHW)
        return logits_BK

    def attend(self, features_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits_BK and attention_BHW.

        attention_BHW lies in [0, 1] and sums to 1 over each image's positions.
        """
        positions_BTF = features_BCHW.flatten(2).transpose(1, 2)
        gated_BTH = torch.tanh(self.values(positions_BTF)) * self.gates(positions_BTF).sigmoid()
        attention_BT1 = self.score(gated_BTH).softmax(dim=1)
        pooled_BF = (attention_BT1 * positions_BTF).sum(dim=1)
        attention_BHW = attention_BT1.reshape(-1, *features_BCHW.shape[2:])
        return self.classifier(self.dropout(pooled_BF)), attention_BHW

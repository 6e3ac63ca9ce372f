"""Attention over a convolutional recurrent reading of the feature map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dermalyze.errors import ConfigError
from dermalyze.models.ranges import require_width


class AcrnnHead(nn.Module):
    """Read the feature map as a sequence: convolution, LSTM, additive attention, classifier.

    The H x W positions in row-major order are the T steps of the sequence (49 for 7 x 7). A
    convolution over neighbouring steps keeps all T, an LSTM turns them into states h_t, and
    additive attention in the manner of Bahdanau, Cho and Bengio (2015, "Neural machine
    translation by jointly learning to align and translate", section 3.1) weighs them:

        u_t = tanh(W h_t + b),  a = softmax_t(v . u_t),  c = sum_t a_t u_t,  logits = Linear(c)

    `context` is the width of u_t and so of the context vector c. This is our reading of "a
    context of 16": in the paper c sums the states h_t themselves (64 wide here), and the
    alignment depends on a decoder's state too, which a classifier does not have.

    Args:
        in_features: F, channels of the feature map.
        num_classes: K.
        channels: output channels of the convolution.
        kernel_size: steps that the convolution sees; odd, so that it has a middle.
        lstm_hidden: width of the LSTM's state.
        context: width of the attention's space and of the context vector.

    Raises:
        ConfigError: a value out of its range.
    """

    def __init__(
        self,
        *,
        in_features: int,
        num_classes: int,
        channels: int,
        kernel_size: int,
        lstm_hidden: int,
        context: int,
    ) -> None:
        super().__init__()
        widths = {"channels": channels, "lstm_hidden": lstm_hidden, "context": context}
        for name, width in widths.items():
            require_width(f"model.head.{name}", width)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ConfigError(
                f"model.head.kernel_size={kernel_size}: an odd number of steps is needed, so that "
                "the convolution has a middle; try 1, 3 or 5."
            )
        self.convolution = nn.Conv1d(in_features, channels, kernel_size, padding="same")
        self.lstm = nn.LSTM(channels, lstm_hidden, batch_first=True)
        self.projection = nn.Linear(lstm_hidden, context)
        self.score = nn.Linear(context, 1, bias=False)  # softmax cancels a bias
        self.classifier = nn.Linear(context, num_classes)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Return logits_BK of features_BCHW (B, F, H, W)."""
        logits_BK, _ = self.attend(features_BCHW)
        return logits_BK

    def attend(self, features_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits_BK and attention_BHW.

        attention_BHW lies in [0, 1] and sums to 1 over each image's positions.
        """
        sequence_BCT = features_BCHW.flatten(2)
        steps_BTC = self.convolution(sequence_BCT).relu().transpose(1, 2)
        states_BTD, _ = self.lstm(steps_BTC)
        projected_BTU = torch.tanh(self.projection(states_BTD))
        attention_BT1 = self.score(projected_BTU).softmax(dim=1)
        context_BU = (attention_BT1 * projected_BTU).sum(dim=1)
        attention_BHW = attention_BT1.reshape(-1, *features_BCHW.shape[2:])
        return self.classifier(context_BU), attention_BHW

"""Mixup and CutMix: two images of a batch become two mixtures of both, and so do their labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dermalyze.augmentation.ranges import probability_problems
from dermalyze.config import raise_problems

Box = tuple[int, int, int, int]  # top, bottom, left, right in pixels; bottom and right outside


@dataclass(frozen=True)
class Mix:
    """How the images of one batch are mixed.

    Attributes:
        kept: share of itself that an image keeps, in [0, 1]: lambda of both papers.
        box: what CutMix takes from the partner; None: Mixup.
    """

    kept: float
    box: Box | None

    def images(self, images_BCHW: Tensor) -> Tensor:
        """Return mixed images of the same type, Mixup's as float32; the input is not changed."""
        partners = partners_of(images_BCHW)
        if self.box is None:
            return images_BCHW.float().lerp(partners.float(), 1 - self.kept)
        top, bottom, left, right = self.box
        mixed = images_BCHW.clone()
        mixed[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
        return mixed

    def rows(self, values_BX: Tensor) -> Tensor:
        """Return mixed rows of labels, or of anything else that belongs to the images."""
        return values_BX.lerp(partners_of(values_BX), 1 - self.kept)


class Mixing:
    """Mixup (Zhang et al. 2018, equation 1) and CutMix (Yun et al. 2019, equations 1 and 2).

    Partners are neighbours in the batch: positions 0 and 1, 2 and 3, and so on; the last image of
    an odd batch stays as it is. The order of an epoch is random, so a neighbour is as random as the
    papers' permuted partner, and a batch can be shared out in pairs among several processes.
    One lambda, drawn from Beta(alpha, alpha), holds for the batch. CutMix's box has a uniform
    centre and is cut off at the borders; lambda is then what is left of the image in truth.

    Args:
        mixup_alpha: of Mixup's Beta distribution, > 0; None: no Mixup.
        cutmix_alpha: of CutMix's, > 0; None: no CutMix.
        cutmix_share: of the mixed batches, where both are on, in [0, 1].
        probability: that a batch is mixed at all.
        unmixed_last_epochs: so many epochs at the end see the images as they are, >= 0.
        total_epochs: of the whole run.

    Raises:
        ConfigError: a value out of its range; all of them are named.
    """

    def __init__(
        self,
        *,
        mixup_alpha: float | None,
        cutmix_alpha: float | None,
        cutmix_share: float,
        probability: float,
        unmixed_last_epochs: int,
        total_epochs: int,
    ) -> None:
        problems = probability_problems("mix", probability=probability, cutmix_share=cutmix_share)
        alphas = {"mixup_alpha": mixup_alpha, "cutmix_alpha": cutmix_alpha}
        problems += [
            f"mix.{name}={alpha}: a finite number > 0 is needed, such as 0.2 or 1.0; null turns "
            "this kind of mixing off"
            for name, alpha in alphas.items()
            if alpha is not None and not 0 < alpha < np.inf
        ]
        if not 0 <= unmixed_last_epochs <= total_epochs:
            problems.append(
                f"mix.unmixed_last_epochs={unmixed_last_epochs}: between 0 and the run's "
                f"{total_epochs} epochs are needed"
            )
        raise_problems(problems)
        self.mixup_alpha, self.cutmix_alpha = mixup_alpha, cutmix_alpha
        if mixup_alpha is None:
            self.cutmix_share = 1.0
        else:
            self.cutmix_share = 0.0 if cutmix_alpha is None else cutmix_share
        self.probability = probability if any(alphas.values()) else 0.0
        self.last_mixed_epoch = total_epochs - unmixed_last_epochs

    @property
    def is_off(self) -> bool:
        """Whether no batch is ever mixed."""
        return self.probability == 0 or self.last_mixed_epoch == 0

    def __call__(self, random: np.random.Generator, *, epoch: int, size: int) -> Mix | None:
        """Draw what happens to a batch; None: nothing.

        Args:
            random: fresh for each batch.
            epoch: counted from 0.
            size: side of the square images in pixels.
        """
        # Drawn in any case and in this order, so that one option does not shift another's numbers.
        mixed, cut, *centre = random.random(4)
        if epoch >= self.last_mixed_epoch or mixed >= self.probability:
            return None
        is_cut = cut < self.cutmix_share
        alpha = self.cutmix_alpha if is_cut else self.mixup_alpha
        kept = float(random.beta(alpha, alpha))  # type: ignore[arg-type]
        if not is_cut:
            return Mix(kept, None)
        box = cut_box(kept, centre, size)
        top, bottom, left, right = box
        return Mix(1 - (bottom - top) * (right - left) / size**2, box)


def cut_box(kept: float, centre: list[float], size: int) -> Box:
    """Return CutMix's box: sides sqrt(1 - kept) of the image's, about a centre, cut at the borders.

    Args:
        kept: lambda, in [0, 1].
        centre: height and width of the box's middle as shares of the image's, in [0, 1).
        size: side of the square image in pixels.
    """
    side = int(size * np.sqrt(1 - kept))
    middle = np.floor(np.array(centre) * size).astype(int)
    (top, left), (bottom, right) = (
        np.clip(middle + half, 0, size).tolist() for half in (-(side // 2), side - side // 2)
    )
    return top, bottom, left, right


def partners_of(values_BX: Tensor) -> Tensor:
    """Return the rows with neighbours changed over: 1, 0, 3, 2, ...; an odd last one stays."""
    order = torch.arange(len(values_BX), device=values_BX.device)
    order = torch.where(order + 1 - order % 2 * 2 < len(order), order + 1 - order % 2 * 2, order)
    return values_BX[order]

"""BatchNorm folded into the convolutions before it: the same function with a pass less a layer.

In evaluation a BatchNorm layer is an affine map of each channel, which scales a convolution's
filters just as well (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", section 3.2). On a CPU a forward pass of EfficientNet-V2-S is a
tenth shorter for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from dermalyze.compute import Precision

# Exactly these: a class derived from them may do something else with its weights.
CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
NORMALISATIONS = (nn.BatchNorm2d, BatchNormAct2d)


def fold_batch_norm(model: nn.Module, *, image_size: int, precision: Precision) -> list[str]:
    """Let a model predict faster, in place; its probabilities then differ by rounding.

    A BatchNorm layer is folded where all that a convolution gave went to it and nowhere else.

    Args:
        model: called with images_BCHW (uint8); in eval mode, and to be trained no more.
        image_size: pixels of a side.
        precision: in which it will predict, and where. In half precision a model stays as it is:
            there BatchNorm computes in float32, and what was folded would be rounded.

    Returns:
        The names of the layers that are folded.
    """
    names = {part: name for name, part in model.named_modules() if type(part) in NORMALISATIONS}
    if precision.dtype is not None or not names:
        return []
    done = []
    example_BCHW = torch.zeros((1, 3, image_size, image_size), dtype=torch.uint8)
    for convolution, normalisation in _pairs(model, example_BCHW.to(precision.device)):
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            normalisation.running_mean,
            normalisation.running_var,
            normalisation.eps,
            normalisation.weight,
            normalisation.bias,
        )
        rest: nn.Module = nn.Identity()
        if isinstance(normalisation, BatchNormAct2d):
            rest = nn.Sequential(normalisation.drop, normalisation.act)
        model.set_submodule(names[normalisation], rest.eval())
        done.append(names[normalisation])
    return done


def _pairs(model: nn.Module, example_BCHW: Tensor) -> Iterator[tuple[Any, Any]]:
    """Yield each convolution with the BatchNorm layer that alone is given what it computes.

    Who reads what is seen in the graph that autograd keeps of a forward pass of the example.
    """
    made: dict[Any, Tensor] = {}
    given: dict[Any, Tensor] = {}
    calls: Counter[nn.Module] = Counter()

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[module] += 1
        if type(module) in CONVOLUTIONS:
            made[module] = output
        else:
            given[module] = inputs[0]

    layers = [part for part in model.modules() if type(part) in CONVOLUTIONS + NORMALISATIONS]
    handles = [layer.register_forward_hook(watch) for layer in layers]
    try:
        with torch.enable_grad():
            output = model(example_BCHW)
    finally:
        for handle in handles:
            handle.remove()
    readers = _readers(output)
    maker = {id(tensor): convolution for convolution, tensor in made.items()}
    for normalisation, tensor in given.items():
        convolution = maker.get(id(tensor))
        if convolution is None or normalisation.running_mean is None:
            continue
        if calls[convolution] == calls[normalisation] == readers[tensor.grad_fn] == 1:
            yield convolution, normalisation


def _readers(output: Tensor) -> Counter[Any]:
    """Return how many operations took in what each operation before them gave, by autograd."""
    readers: Counter[Any] = Counter()
    waiting: list[Any] = [output.grad_fn]
    seen = {output.grad_fn}
    while waiting:
        for before, _ in waiting.pop().next_functions:
            readers[before] += 1
            if before is not None and before not in seen:
                seen.add(before)
                waiting.append(before)
    return readers

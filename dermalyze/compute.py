"""The device, the number format and the threads that a run computes with."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from dermalyze.errors import ConfigError, nearest
from dermalyze.randomness import Purpose, torch_seed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Precision:
    """The number format of forward passes; None is plain float32."""

    device: torch.device
    dtype: torch.dtype | None

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context a forward pass runs in."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    @property
    def needs_scaler(self) -> bool:
        """Whether gradients need loss scaling: float16's range is too small without it."""
        return self.dtype is torch.float16

    def __str__(self) -> str:
        return "fp32" if self.dtype is None else {torch.bfloat16: "bf16"}.get(self.dtype, "fp16")


def choose_device(name: str, *, key: str = "device") -> torch.device:
    """Return the device of that name; `auto` takes CUDA, then MPS, then the CPU.

    Args:
        name: auto, cuda, mps or cpu.
        key: of the config that names it, for the error.

    Raises:
        ConfigError: the named device is not there.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available.get(name, False):
        there = ", ".join(device for device, is_there in available.items() if is_there)
        raise ConfigError(
            f"{key}={name}: torch {torch.__version__} finds no such device here (it finds: "
            f"{there}). Name what it finds, or install torch for this device."
        )
    return torch.device(name)


def choose_precision(amp: str, device: torch.device) -> Precision:
    """Return the number format for `training.amp` on a device.

    `auto` is bf16 on CUDA devices that have it, fp16 on older ones, and fp32 elsewhere: a CPU that
    multiplies in bf16 is faster by it with large convolutions and slower with depthwise ones, and
    a CPU without AVX-512 bf16 is several times slower.

    Raises:
        ConfigError: another name; or fp16 on a device without loss scaling in torch.
    """
    if amp == "fp16" and device.type != "cuda":
        raise ConfigError(
            f"training.amp=fp16 needs a CUDA device; this run computes on {device.type}. "
            "Use training.amp=auto, bf16 or off."
        )
    if amp == "auto" and device.type == "cuda":
        amp = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    formats = {"auto": None, "off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    if amp not in formats:
        raise ConfigError(f"training.amp={amp}: no number format.{nearest(amp, formats)}")
    return Precision(device, formats[amp])


def multiplies_bf16(device: torch.device) -> bool:
    """Return whether the device is a CPU with units for products in bf16 (Intel's AMX).

    False as well where torch is too old to tell.
    """
    told: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    return device.type == "cpu" and bool(told().get("amx_bf16"))


def set_threads(threads: int | None) -> int:
    """Set and return the CPU threads of torch; None keeps torch's own choice.

    The thread count changes the order of sums, and so the last bits of a result.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


@contextmanager
def numerics(*, deterministic: bool, fast: bool) -> Iterator[None]:
    """Within this context, torch computes repeatably, or fast, or as it does by itself.

    Args:
        deterministic: refuse operations that may differ between two runs.
        fast: on CUDA, TF32 in float32 products, and the fastest of cuDNN's kernels by trial.
    """
    before = torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    products = torch.get_float32_matmul_precision()
    if deterministic:
        # cuBLAS reads this when its handle is made, so it is set before the first product.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    # Torch would also fill every new tensor with NaN, to show reads of what was never written.
    # That is for hunting bugs in kernels and costs time in every step.
    checks: Any = torch.utils.deterministic
    fill = checks.fill_uninitialized_memory
    checks.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = fast
    if fast:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        checks.fill_uninitialized_memory = fill
        torch.backends.cudnn.benchmark = benchmark
        torch.set_float32_matmul_precision(products)


def memory_format(channels_last: bool | str, device: torch.device) -> torch.memory_format:
    """Return the memory format for `training.channels_last`.

    `auto` puts channels last on the CPU and on CUDA, whose convolutions are faster that way, and
    not on MPS.
    """
    if channels_last == "auto":
        channels_last = device.type != "mps"
    return torch.channels_last if channels_last else torch.contiguous_format


def seed_network(seed: int, purpose: Purpose, *time: int) -> None:
    """Seed torch's own generators, which initialisation and dropout draw from.

    The default generators are seeded directly: `torch.manual_seed` visits every backend and
    costs a millisecond, which would be felt at every step.
    """
    value = torch_seed(seed, purpose, *time)
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(value)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(value)

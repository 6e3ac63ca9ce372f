from __future__ import annotations

import pytest
import torch

from dermalyze.compute import choose_device, choose_precision, multiplies_bf16, numerics
from dermalyze.errors import ConfigError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("amp", "dtype", "said"),
    [("auto", None, "fp32"), ("off", None, "fp32"), ("bf16", torch.bfloat16, "bf16")],
)
def test_number_formats_of_the_cpu(amp: str, dtype: torch.dtype | None, said: str) -> None:
    precision = choose_precision(amp, CPU)
    assert (precision.dtype, str(precision), precision.needs_scaler) == (dtype, said, False)
    with precision.autocast():
        assert torch.nn.Linear(2, 2)(torch.zeros(1, 2)).dtype is (dtype or torch.float32)


def test_float16_is_scaled_on_cuda_and_refused_elsewhere() -> None:
    assert choose_precision("fp16", torch.device("cuda")).needs_scaler
    with pytest.raises(ConfigError, match=r"training\.amp=fp16 needs a CUDA device; .* on cpu\."):
        choose_precision("fp16", CPU)
    with pytest.raises(ConfigError, match=r"training\.amp=fp61: .* Did you mean 'fp16'\?"):
        choose_precision("fp61", CPU)


def test_bf16_is_multiplied_by_a_cpu_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for told in (True, False):
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda told=told: {"amx_bf16": told}, raising=False
        )
        assert multiplies_bf16(CPU) is told
        assert not multiplies_bf16(torch.device("cuda"))
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not multiplies_bf16(CPU)


def test_a_device_that_is_not_there_is_refused() -> None:
    missing = "mps" if torch.cuda.is_available() else "cuda"
    for key in ("device", "gpu.device"):
        with pytest.raises(ConfigError, match=rf"^{key}={missing}: .* cpu\)"):
            choose_device(missing, key=key)
    assert choose_device("cpu") == CPU


def settings() -> tuple[bool, bool, str, bool]:
    """What `numerics` sets, as torch has it now."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        torch.get_float32_matmul_precision(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.mark.parametrize(
    ("deterministic", "fast", "within"),
    [
        (True, False, (True, False, "highest", False)),
        (False, False, (False, False, "highest", False)),
        (False, True, (False, True, "high", False)),
    ],
)
def test_numerics_hold_within_and_are_put_back(
    deterministic: bool, fast: bool, within: tuple[bool, bool, str, bool]
) -> None:
    before = settings()

    def compute() -> None:
        assert settings() == within
        raise RuntimeError("in between")

    options = {"deterministic": deterministic, "fast": fast}
    with pytest.raises(RuntimeError, match="in between"), numerics(**options):
        compute()
    assert settings() == before == (False, False, "highest", True)

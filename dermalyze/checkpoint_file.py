"""Checkpoints as files: tensors beside one JSON header, verified by a sha256 inside.

The format is safetensors, so that reading a stranger's file runs no code and needs no pickle.
Its single metadata entry `dermalyze` is the header as JSON with `sha256` over everything else.
torch is imported where tensors are: who only reads a header starts without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from safetensors import SafetensorError, safe_open

from dermalyze.errors import CheckpointError

if TYPE_CHECKING:
    import torch

BEST = "checkpoint_best.safetensors"  # the weights to predict with
LATEST = "checkpoint_latest.safetensors"  # adds what resuming needs

FORMAT_VERSION = 1
_ENTRY = "dermalyze"
Header = dict[str, Any]


class Seal(NamedTuple):
    """What a checkpoint says beside its tensors.

    text: the header as it stands in the file, which the sha256 is over.
    sha256: over header and tensors, in hexadecimal.
    """

    text: str
    sha256: str
    header: Header


def write_checkpoint(path: Path, tensors: Mapping[str, torch.Tensor], header: Header) -> None:
    """Write tensors (any device) and header to `path`, whole or not at all.

    The file is written under a temporary name, flushed to the disk and renamed; the file that
    stood at `path` is kept as `<stem>_previous<suffix>` until the next call.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; what stood at `path`
            is intact.
    """
    from safetensors.torch import save_file

    on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"format_version": FORMAT_VERSION, **header}
    text = json.dumps(header, sort_keys=True, allow_nan=False)
    sealed = json.dumps({"header": text, "sha256": _digest(text, on_host)})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as files are made here; safetensors lets none but us read
        save_file(on_host, temporary, metadata={_ENTRY: sealed})
        temporary.chmod(mode)
        _flush(temporary)
        if path.exists():
            _keep_as(previous_of(path), path)
        temporary.replace(path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        needed = sum(tensor.numel() * tensor.element_size() for tensor in on_host.values())
        raise CheckpointError(
            f"{path}: the checkpoint could not be written ({error}); it needs about "
            f"{needed / 2**20:.0f} MiB. What stood there is intact. Free some space or name "
            "another folder, then give the command again; training is resumed."
        ) from error


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], Header]:
    """Return the tensors (on the CPU) and the header of a verified checkpoint.

    Raises:
        CheckpointError: missing, truncated, changed, made by something else, or by a newer
            version; the message says which.
    """
    with _opened(path, "pt") as file:
        seal = _seal_of(path, file)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if _digest(seal.text, tensors) != seal.sha256:
        raise CheckpointError(f"{path}: its sha256 does not match; the file was changed or damaged")
    if seal.header["format_version"] > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: written in format {seal.header['format_version']} by a newer version; this "
            f"one reads up to {FORMAT_VERSION}. Install the newer version."
        )
    return tensors, seal.header


def read_seal(path: Path) -> Seal:
    """Return the header and the sha256 as the file states them, without reading its tensors.

    Enough to tell one checkpoint from another; only `read_checkpoint` verifies that they are true.

    Raises:
        CheckpointError: missing, or made by something else.
    """
    with _opened(path, "np") as file:
        return _seal_of(path, file)


@contextmanager
def _opened(path: Path, framework: Literal["np", "pt"]) -> Iterator[Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: damaged or not a checkpoint of this project ({error})"
        ) from error


def _seal_of(path: Path, file: Any) -> Seal:
    try:
        sealed = json.loads((file.metadata() or {})[_ENTRY])
        header: Header = json.loads(sealed["header"])
        if not isinstance(header["format_version"], int):
            raise TypeError("format_version")
        return Seal(text=sealed["header"], sha256=sealed["sha256"], header=header)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: a safetensors file without the header {_ENTRY!r}, so not a checkpoint of "
            "this project. Bare weights can be given as model.weights_file=FILE instead."
        ) from error


def previous_of(path: Path) -> Path:
    """Return where the checkpoint before the one at `path` is kept."""
    return path.with_name(f"{path.stem}_previous{path.suffix}")


def _keep_as(kept: Path, path: Path) -> None:
    """Give the file at `path` a second name, so that at no moment there is nothing at `path`."""
    link = kept.with_name(f".{kept.name}.{os.getpid()}.tmp")
    link.unlink(missing_ok=True)
    try:
        link.hardlink_to(path)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, link)
    link.replace(kept)


def remove_leftovers(folder: Path) -> None:
    """Remove what writes that were killed left in a run's folder; only for who holds its lock."""
    for pattern in (".*.tmp", ".tmp*"):  # ours, and those of safetensors
        for path in folder.glob(pattern):
            path.unlink()


def _digest(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    import torch

    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

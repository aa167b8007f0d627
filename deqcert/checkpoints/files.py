"""Reading and writing checkpoints; those that do not fit or could do harm are refused before anything is copied."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from deqcert.checkpoints.architecture import ARCHITECTURE, demand_plain_architecture
from deqcert.errors import CheckpointError, is_real
from deqcert.files import write_atomically
from deqcert.names import checkpoint_path

SAFETENSORS = ".safetensors"

PREFIX = "network."
"""Begins the name of every weight of the network in a checkpoint, which is of the module around it."""

_SHOWN = 3
_LONGEST_NAME = 100
_ZIP = b"PK\x03\x04"
_REFUSED = "refused: "
_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}

_CONVERT = "deqcert convert FILE --to TARGET.ckpt --config CONFIG converts weights of other programs"
_WEB_PAGE = "is a web page, not a file of weights; download the file itself"
_OTHER_KINDS = {
    b"<!doctype html": _WEB_PAGE,
    b"<html": _WEB_PAGE,
    b"version https://git-lfs": "is a pointer of git-lfs, not the file itself; git lfs pull fetches it",
}
"""How a file begins that often stands where weights should, and what to do."""

_HYPERPARAMETERS = ("hyper_parameters", "hparams", "module_arguments")
"""Where Lightning looks for the arguments of a module, now and in versions before."""

_CODE = {"_instantiator", "_class_path", "class_path"}
"""Hyperparameters by which Lightning lets a checkpoint choose what is imported and called."""


def read_checkpoint(path: str | Path, field: str = "ckpt_path") -> dict[str, Any]:
    """Read a checkpoint written by ``deqcert fit``, named by the setting ``field``, onto the CPU.

    A plain state dict and a file of safetensors, by the network's own names with or without ``network.`` before all of
    them, come in the form of a checkpoint too. ``path`` may be ``deqcert:NAME``.

    Raises:
        CheckpointError: There is no such file, or it is damaged, holds more than tensors and plain data, is
            compressed (a small file could fill the memory), has no weights, or see :func:`demand_plain`.
    """
    shown = f"{field} = {str(path)!r}"
    file = checkpoint_path(path, field)
    if str(file).endswith(SAFETENSORS):
        content: Any = load_safetensors(file, shown)
    else:
        content = load_plain(file, shown, "a checkpoint written by fit, a state dict or safetensors")
    checkpoint = _as_checkpoint(content)
    demand_plain(checkpoint, shown)
    return dict(checkpoint)


def _as_checkpoint(content: Any) -> Any:
    """Return weights alone, or by the network's own names, in the form of a checkpoint; anything else as it is."""
    if not isinstance(content, Mapping):
        return content
    alone = content and all(isinstance(name, str) and isinstance(each, Tensor) for name, each in content.items())
    checkpoint = {"state_dict": content} if alone else content
    weights = checkpoint.get("state_dict")
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
        return checkpoint
    if any(name.startswith(PREFIX) for name in weights):
        return checkpoint
    return {**checkpoint, "state_dict": {f"{PREFIX}{name}": each for name, each in weights.items()}}


def save_checkpoint(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Write ``checkpoint`` to ``path`` in one step: a reader sees the old file or the new one."""
    content = io.BytesIO()
    torch.save(dict(checkpoint), content)
    write_atomically(path, content.getbuffer())


def load_plain(path: str | Path, shown: str, expected: str | None = None) -> Any:
    """Load tensors and plain data from a file of ``torch.save``; nothing in it can run code.

    Where ``expected`` says what the file must be, files of torch before 1.6, which have no checksums, are refused.

    Raises:
        CheckpointError: There is no such file, or it is damaged, compressed or holds anything else.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f"{shown}: must be an existing checkpoint file")
    try:
        demand_no_other_kind(path, shown)
        _demand_intact(path, shown, expected)
        with warnings.catch_warnings():
            # A pickle of another protocol than torch's is loaded or refused like any other.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch.load raises whatever the damage leads to
        cause = _cause(error)
        advice = "; save its state_dict alone" if expected is None and cause.startswith(_REFUSED) else ""
        raise CheckpointError(f"{shown}: damaged, or holds more than tensors ({cause}){advice}") from error


def load_safetensors(path: str | Path, shown: str) -> dict[str, Any]:
    """Read safetensors as a checkpoint; sigma and architecture are those of the metadata, if they are there.

    Raises:
        CheckpointError: There is no such file, or it is damaged.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f"{shown}: must be an existing checkpoint file")
    try:
        demand_no_other_kind(path, shown)
        checkpoint: dict[str, Any] = {"state_dict": load(Path(path).read_bytes())}
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if "sigma" in metadata:
            checkpoint["hyper_parameters"] = {"sigma": float(metadata["sigma"])}
        if ARCHITECTURE in metadata:
            checkpoint[ARCHITECTURE] = json.loads(metadata[ARCHITECTURE])
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{shown}: cannot be read as safetensors: {error}") from error
    return checkpoint


def demand_plain(checkpoint: Any, shown: str = "ckpt_path") -> None:
    """Raise :class:`CheckpointError` unless a checkpoint holds what ``fit`` writes, as far as deqcert uses it.

    Hyperparameters may not name code, in whatever package: torch and lightning have enough functions that run what they
    are given.
    """
    if not isinstance(checkpoint, Mapping) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{shown}: not a checkpoint written by fit (no state_dict); {_CONVERT}")
    weights = checkpoint["state_dict"]
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"{shown}: state_dict must be a dictionary of tensors, not {type(weights).__name__}")
    demand_tensors(weights, shown)
    for field in _HYPERPARAMETERS:
        parameters = checkpoint.get(field, {})
        if not isinstance(parameters, Mapping):
            raise CheckpointError(f"{shown}: {field} must be a dictionary, not {type(parameters).__name__}")
        demand_sigma(parameters.get("sigma", 0.0), f"{shown}: {field}")
        if named := sorted(_CODE & parameters.keys()):
            raise CheckpointError(f"{shown}: {field} names code to run ({', '.join(named)}); no checkpoint may")
    demand_plain_architecture(checkpoint.get(ARCHITECTURE), shown)
    seed = checkpoint.get("stream_seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise CheckpointError(f"{shown}: stream_seed must be an integer in [0, 2**64)")


def demand_sigma(sigma: Any, shown: str) -> None:
    """Raise :class:`CheckpointError` unless a file states a usable ``sigma``; an integer may exceed all floats."""
    if not is_real(sigma) or not 0 <= sigma <= sys.float_info.max:
        raise CheckpointError(f"{shown} must have a finite sigma >= 0")


def demand_tensors(weights: Mapping[Any, Any], shown: str) -> None:
    """Raise :class:`CheckpointError` unless ``weights`` maps names to dense tensors."""
    for key, value in weights.items():
        if not isinstance(key, str):
            raise CheckpointError(f"{shown}: names in state_dict must be strings, not {type(key).__name__}")
        dense = isinstance(value, Tensor) and value.layout is torch.strided and not (value.is_nested or value.is_meta)
        if not dense:
            kind = getattr(value, "layout", type(value).__name__)
            raise CheckpointError(f"{shown}: {printable(key)} must be a dense tensor with data, not {kind}")


def demand_usable_weights(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], field: str = "ckpt_path", other_names: str = _CONVERT
) -> None:
    """Raise :class:`CheckpointError` unless the weights ``given`` can replace ``own``.

    They need the same names and shapes, floats where there are floats, and finite values once they are of the model's
    type. The model's logits would be NaN on every image otherwise, which nobody would notice in training. The error
    names some of each kind of what does not fit, and says what to do where the names are others, ``other_names``.
    """
    common = own.keys() & given.keys()
    shapes = {key for key in common if own[key].shape != given[key].shape}
    types = {
        key
        for key in common
        if own[key].dtype != given[key].dtype and not {own[key].dtype, given[key].dtype} <= _FLOATS
    }
    kinds = (
        [f"missing {printable(key)}" for key in own.keys() - given.keys()],
        [f"{key} has shape {tuple(given[key].shape)}, the model needs {tuple(own[key].shape)}" for key in shapes],
        [f"{key} is {given[key].dtype}, the model needs {own[key].dtype}" for key in types],
        [f"unexpected {printable(key)}" for key in given.keys() - own.keys()],
    )
    # Not of those of another shape: they could be far larger than their file.
    spoilt = [printable(key) for key in common - shapes - types if not given[key].to(own[key].dtype).isfinite().all()]
    complaints = []
    if any(kinds):
        problems = "; ".join(_some(kind) for kind in kinds if kind)
        complaints.append(f"the checkpoint is of another architecture than the model: {problems}")
        if other_names and own.keys() - given.keys() and given.keys() - own.keys():
            complaints[-1] += f"; {other_names}"
    if spoilt:
        complaints.append(f"weights must be finite; NaN or infinite are some of {_some(spoilt)}")
    if complaints:
        raise CheckpointError(f"{field}: {'. '.join(complaints)}")


def demand_no_other_kind(path: str | Path, shown: str) -> None:
    """Raise :class:`CheckpointError` if a file is what often stands where weights should, and say what to do."""
    with open(path, "rb") as stream:
        start = stream.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for begin, complaint in _OTHER_KINDS.items():
        if start.startswith(begin):
            raise CheckpointError(f"{shown}: {complaint}")


def _demand_intact(path: str | Path, shown: str, expected: str | None) -> None:
    """Refuse archives but those of ``torch.save``, whose members are neither compressed nor overlap.

    ``torch.load`` does not look at their checksums: a flipped bit would be another model.
    """
    with open(path, "rb") as stream:
        if stream.read(len(_ZIP)) != _ZIP:
            if expected is None:
                return
            raise CheckpointError(f"{shown}: not {expected} (no archive of torch.save)")
        with zipfile.ZipFile(stream) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > os.path.getsize(path):
                raise CheckpointError(f"{shown}: compressed ({unpacked} bytes unpacked), which torch.save does not do")
            damaged = archive.testzip()
    if damaged is not None:
        raise CheckpointError(f"{shown}: damaged: wrong checksum of {printable(damaged)}")


def _cause(error: Exception) -> str:
    """Say what ``torch.load`` found, without its advice on how to trust a file."""
    text = str(error).partition("WeightsUnpickler error:")[2] or str(error)
    refused = re.search(r"GLOBAL (\S+)", text)
    lines = text.split("\n") if refused is None else [_REFUSED + refused[1]]
    return next((line.strip() for line in lines if line.strip()), type(error).__name__)


def printable(name: str) -> str:
    """Return a name out of a file as it may be shown: escape sequences could command the terminal."""
    return ascii(name)[1:-1][:_LONGEST_NAME]


def _some(texts: Iterable[str]) -> str:
    ordered = sorted(texts)
    more = f"; and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return "; ".join(ordered[:_SHOWN]) + more

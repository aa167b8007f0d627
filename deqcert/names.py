"""The configurations and checkpoints of deqcert by name, ``deqcert:NAME``, from any working directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

from deqcert.errors import CheckpointError, require
from deqcert.files import file_digest

PREFIX = "deqcert:"
CHECKPOINTS_VARIABLE = "DEQCERT_CHECKPOINTS"
"""Environment variable: the folder or URL with those checkpoints that are too large for the package."""

_PACKAGE = Path(__file__).parent
_INSTALLED = _PACKAGE / "shipped"  # a clone has the same folders beside the package
_ROOT = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent
_CONFIGS, _CHECKPOINTS = _ROOT / "configs", _ROOT / "checkpoints"


def config_path(name: str) -> str:
    """Return the file of the configuration ``deqcert:NAME``; any other name is returned as it is.

    Raises:
        SettingError: There is no configuration of this name.
    """
    if not name.startswith(PREFIX):
        return name
    files = {f"{PREFIX}{path.relative_to(_CONFIGS).with_suffix('')}": path for path in _CONFIGS.rglob("*.yaml")}
    require(name in files, "config", name, f"must be one of {', '.join(sorted(files))}")
    return str(files[name])


def checkpoint_path(path: str | Path, field: str = "ckpt_path") -> str | Path:
    """Return the file of the checkpoint ``deqcert:NAME``; any other path is returned as it is.

    It is a file of the package (in a clone: of ``checkpoints``), of the folder ``DEQCERT_CHECKPOINTS``, or of torch's
    cache. Where that variable is a URL, a file that none of them has is downloaded to the cache. Only a file with the
    known SHA-256 is taken. ``field`` is the setting, for the error.

    Raises:
        CheckpointError: There is no checkpoint of this name, or no file of it that may be used.
    """
    if not str(path).startswith(PREFIX):
        return path
    shown, name = f"{field} = {str(path)!r}", str(path).removeprefix(PREFIX)
    lines = (_CHECKPOINTS / "SHA256SUMS").read_text().splitlines()
    digests = {Path(file).parent.name: digest for digest, file in map(str.split, lines)}
    if name not in digests:
        known = ", ".join(f"{PREFIX}{each}" for each in digests)
        raise CheckpointError(f"{shown}: must be one of {known}")
    place = os.environ.get(CHECKPOINTS_VARIABLE, "")
    others: list[Path] = []
    for folder in _folders(place):
        if (file := folder / name / "model.ckpt").is_file():
            if file_digest(file) == digests[name]:
                return file
            others.append(file)
    if _is_url(place):
        target = _cache() / name / "model.ckpt"
        return _download(f"{place.rstrip('/')}/{name}/model.ckpt", target, digests[name], shown)
    if others:
        raise CheckpointError(f"{shown}: {others[0]}: has another SHA-256 than {digests[name]}")
    advice = f"set the environment variable {CHECKPOINTS_VARIABLE} to the folder or URL that has {name}/model.ckpt"
    raise CheckpointError(f"{shown}: is not in the installed package; {advice}, e.g. to checkpoints/ of a clone")


def _is_url(place: str) -> bool:
    return "://" in place


def _folders(place: str) -> Iterator[Path]:
    """Yield where to look, the cache of downloads last."""
    yield _CHECKPOINTS
    if place and not _is_url(place):
        yield Path(place).expanduser()
    yield _cache()


def _cache() -> Path:
    from torch.hub import get_dir  # takes seconds

    return Path(get_dir(), "deqcert")


def _download(url: str, target: Path, digest: str, shown: str) -> Path:
    from torch.hub import download_url_to_file

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        download_url_to_file(url, str(target), hash_prefix=digest)
    except (OSError, ValueError, HTTPException, RuntimeError) as error:  # the last is another digest
        raise CheckpointError(f"{shown}: {url} cannot be used: {error}") from error
    return target

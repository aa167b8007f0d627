"""Where the files of a split are: in a folder, in tar archives that are read in place, or in a packed .npz file."""

from __future__ import annotations

import os
import tarfile
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from deqcert.data.decoding import demand_file
from deqcert.data.packed import INTEGER, demand_offsets, read_arrays
from deqcert.errors import DataError, reason

SPLITS = ("train", "val")
"""How the splits are called on disk."""

_MAXIMUM_BYTES = 2**30  # of one file: of a larger one this much is read, which does not decode
_OPEN_ARCHIVES = 128  # kept open per process; the usual limit is 1024 files of all kinds
_BLOCK = 512  # bytes; headers and contents of a tar archive begin at multiples of it
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Source(ABC):
    """Named files of one split, which any process reads in any order.

    Attributes:
        origin: What holds them, as errors call it.
    """

    origin: str

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """Names below the split, with ``/`` between their parts, in no particular order."""

    @property
    @abstractmethod
    def folders(self) -> frozenset[str]:
        """Folders at the top, also those that hold no file; known before the names where that is quicker."""

    @abstractmethod
    def size(self, position: int) -> int:
        """Return the size of a file in bytes."""

    @abstractmethod
    def read(self, position: int) -> bytes:
        """Return the content of a file.

        Raises:
            DataError: It cannot be read.
        """

    def place(self, position: int) -> str:
        """Return where a file is, as errors call it."""
        return f"{self.origin}: {self.names[position]}"


def find_source(root: Path, split: str) -> Source | None:
    """Return the files of ``split`` (train or val) at ``root``, or None where there are none.

    A folder ``root`` has them in the first of: a folder ``split``, ``split.tar``, shards ``split-*.tar``, or the
    official archive ``ILSVRC2012_img_<split>.tar``. A file ``root`` is a tar archive with such folders, or a packed
    .npz file.

    Raises:
        DataError: An archive cannot be read in place.
    """
    if root.is_file():
        if root.suffix == ".npz":
            return PackedSource(root, split)
        source = TarSource([root], split, shared=True)
        return source if source.folders or source.names else None
    if (root / split).is_dir():
        return FolderSource(root / split)
    for pattern in (f"{split}.tar", f"{split}-*.tar", f"ILSVRC2012_img_{split}.tar"):
        if archives := sorted(root.glob(pattern)):
            return TarSource(archives, split)
    return None


class FolderSource(Source):
    """All files below a folder.

    Raises:
        DataError: It cannot be listed, or links lead to one folder twice.
    """

    def __init__(self, folder: Path) -> None:
        self.origin = str(folder)
        self._folder = folder

    @cached_property
    def folders(self) -> frozenset[str]:
        """Folders directly in it."""
        try:
            return frozenset(entry.name for entry in self._folder.iterdir() if entry.is_dir())
        except OSError as error:
            _refuse(error)

    @cached_property
    def names(self) -> Sequence[str]:
        """Paths of the files, relative to the folder; links are followed."""
        names: list[str] = []
        listed: dict[str, str] = {}  # in a loop of links every image would count 40 times
        for folder, below, files in os.walk(self._folder, onerror=_refuse, followlinks=True):
            if (first := listed.setdefault(os.path.realpath(folder), folder)) != folder:
                raise DataError(f"{folder}: is {first} again; every folder must be listed once")
            below.sort()
            prefix = "" if Path(folder) == self._folder else f"{Path(folder).relative_to(self._folder).as_posix()}/"
            names += [prefix + name for name in files]
        return names

    def size(self, position: int) -> int:
        """Return the size of a file in bytes."""
        try:
            return self._path(position).stat().st_size
        except OSError as error:
            _refuse(error)

    def read(self, position: int) -> bytes:
        """Return the content of a file."""
        path = self._path(position)
        demand_file(path, str(path))
        try:
            with path.open("rb") as stream:
                return stream.read(_MAXIMUM_BYTES)
        except OSError as error:
            raise DataError(f"{path}: {reason(error)}") from error

    def place(self, position: int) -> str:
        """Return the path of a file."""
        return str(self._path(position))

    def _path(self, position: int) -> Path:
        return self._folder / self.names[position]


def _refuse(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename}: {reason(error)}") from error


class PackedSource(Source):
    """One split of ``tiny_imagenet_jpeg.npz``: JPEGs one after the other, cut apart at offsets.

    JPEG ``i`` of class ``k`` is called ``<wnids[k]>/<i in five digits>.JPEG``.

    Raises:
        DataError: The file is damaged or is something else.
    """

    def __init__(self, path: Path, split: str) -> None:
        kinds = {"wnids": "U", f"{split}_labels": INTEGER, f"{split}_offsets": INTEGER, f"{split}_bytes": "B"}
        wnids, labels, offsets, content = read_arrays(path, kinds, "packed Tiny-ImageNet")
        if outside := [label for label in labels.tolist() if not 0 <= label < len(wnids)]:
            raise DataError(f"{path}: holds the label {outside[0]}, but {len(wnids)} classes")
        self.origin = f"{path}, {split}"
        self._names = [f"{wnids[label]}/{number:05}.JPEG" for number, label in enumerate(labels.tolist())]
        self._folders = frozenset(wnids.tolist())
        self._offsets = demand_offsets(path, split, offsets, len(labels), len(content))
        self._content = content

    @property
    def names(self) -> Sequence[str]:
        """Names of the files."""
        return self._names

    @property
    def folders(self) -> frozenset[str]:
        """One per class."""
        return self._folders

    def size(self, position: int) -> int:
        """Return the size of a file in bytes."""
        return int(self._offsets[position + 1] - self._offsets[position])

    def read(self, position: int) -> bytes:
        """Return the content of a file."""
        return bytes(self._content[self._offsets[position] : self._offsets[position + 1]].tobytes())


class _Table(NamedTuple):
    """Members of archives: the files with their places, and the names of the folders."""

    names: list[str]
    places: npt.NDArray[np.int64]  # (N, 3): number of the archive, offset and size of the content in bytes
    folders: list[str]

    def tops(self) -> frozenset[str]:
        """Return the folders at the top."""
        return frozenset(path.partition("/")[0] for path in (*self.folders, *(n for n in self.names if "/" in n)))

    def below(self, folder: str) -> _Table:
        """Return what is in ``folder``, without its name."""
        prefix = f"{folder}/"
        inside = [number for number, name in enumerate(self.names) if name.startswith(prefix)]
        names = [self.names[number].removeprefix(prefix) for number in inside]
        folders = [name.removeprefix(prefix) for name in self.folders if name.startswith(prefix)]
        return _Table(names, self.places[inside], folders)


class TarSource(Source):
    """Files in uncompressed tar archives, read in place.

    Headers are read once, when names or folders are first asked for. Archives within an archive are taken for folders:
    the official training archive of ImageNet holds one for each class.

    Args:
        archives: The archives, which together hold the split.
        split: Its name, train or val.
        shared: Whether they hold the other split, too: files are in ``<split>/``, perhaps in one folder above.
            Otherwise ``<split>/`` may stand in front of all names.

    Raises:
        DataError: An archive is compressed, truncated, damaged or changed after its headers were read, or has a member
            that is neither a file nor a folder, two of one name, or one whose name leads out of the archive.
    """

    def __init__(self, archives: Sequence[Path], split: str, shared: bool = False) -> None:
        self._descriptors: dict[int, int] = {}
        self._archives = tuple(archives)
        self._split = split
        self._shared = shared
        self._stamps = tuple(_stamp(archive) for archive in archives)
        self.origin = str(archives[0] if len(archives) == 1 else archives[0].with_name(f"{split}-*.tar"))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_descriptors": {}}

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    @cached_property
    def folders(self) -> frozenset[str]:
        """Folders at the top, and archives in the archive; those of pairs are not classes."""
        if self.paired:
            return frozenset()
        return self._outer.tops() | {_as_folder(name) for name in self._outer.names if _is_archive(name)}

    @cached_property
    def paired(self) -> bool:
        """Whether the label of an image is a number in a file beside it: WebDataset's KEY.jpg and KEY.cls."""
        return any(name.endswith(".cls") for name in self._outer.names)

    def paired_labels(self, names: Sequence[str]) -> list[str]:
        """Return the numbers that belong to the images ``names``.

        Raises:
            DataError: An image has none.
        """
        place_of = {_key(name): place for place, name in enumerate(self.names) if name.endswith(".cls")}
        labels = []
        for name in names:
            place = place_of.get(_key(name))
            if place is None:
                raise DataError(f"{self.origin}: {name!r} has no label {_key(name)}.cls beside it")
            label = self.read(place).strip()
            if not label.isdigit():
                raise DataError(f"{self.place(place)}: holds {label[:20]!r}; must be the number of a class")
            labels.append(label.decode())
        return labels

    @property
    def names(self) -> Sequence[str]:
        """Names of the files."""
        return self._table.names

    def size(self, position: int) -> int:
        """Return the size of a file in bytes."""
        return int(self._table.places[position, 2])

    def read(self, position: int) -> bytes:
        """Return the content of a file."""
        archive, offset, size = self._table.places[position].tolist()
        wanted = min(size, _MAXIMUM_BYTES)
        try:
            with self._opened(archive) as descriptor:
                content = os.pread(descriptor, wanted, offset)
        except OSError as error:
            raise DataError(f"{self.place(position)}: {reason(error)}") from error
        if len(content) < wanted:
            raise DataError(f"{self.place(position)}: {len(content)} of {wanted} bytes could be read")
        return content

    def place(self, position: int) -> str:
        """Return the path of the archive, and the name in it."""
        return f"{self._archives[self._table.places[position, 0]]}: {self.names[position]}"

    @contextmanager
    def _opened(self, archive: int) -> Iterator[int]:
        """Open an archive; the first ones stay open.

        To pread there is no position that threads or forked processes could share.
        """
        if archive in self._descriptors:
            yield self._descriptors[archive]
            return
        descriptor = os.open(self._archives[archive], os.O_RDONLY)
        keep = False
        try:
            if _stamp(descriptor) != self._stamps[archive]:
                raise DataError(f"{self._archives[archive]}: was changed while it was in use")
            yield descriptor
            keep = len(self._descriptors) < _OPEN_ARCHIVES
            keep = keep and self._descriptors.setdefault(archive, descriptor) == descriptor
        finally:
            if not keep:
                os.close(descriptor)

    @cached_property
    def _outer(self) -> _Table:
        table = _scanned(self._archives, self._stamps)
        tops = table.tops()
        if self._shared:
            above = "" if tops & set(SPLITS) or len(tops) != 1 else f"{min(tops)}/"
            return table.below(f"{above}{self._split}")
        return table.below(self._split) if tops == {self._split} and all("/" in name for name in table.names) else table

    @cached_property
    def _table(self) -> _Table:
        if not any(map(_is_archive, self._outer.names)):
            return self._outer
        found = _Scan()
        for name, (archive, offset, size) in zip(self._outer.names, self._outer.places.tolist(), strict=True):
            if _is_archive(name):
                found.read(archive, self._archives[archive], offset, offset + size, f"{_as_folder(name)}/")
            else:
                found.add(archive, name, offset, size)
        return found.table()


def _key(name: str) -> str:
    """Return what the files of one pair share: their name up to the first dot, with its folder."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _is_archive(name: str) -> bool:
    return name.endswith(".tar") and "/" not in name and not name.startswith(".")


def _as_folder(name: str) -> str:
    return name.removesuffix(".tar")


def _stamp(path: Path | int) -> tuple[int, int]:
    """Return size and time of change."""
    try:
        found = os.stat(path)
    except OSError as error:
        _refuse(error)
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=2)  # for each split the folders of the other are looked at, too
def _scanned(archives: tuple[Path, ...], stamps: tuple[tuple[int, int], ...]) -> _Table:
    found = _Scan()
    for number, (path, (size, _)) in enumerate(zip(archives, stamps, strict=True)):
        found.read(number, path, 0, size)
    return found.table()


class _Scan:
    """Collects members of archives."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}  # ordered, and a set
        self._places = array("q")
        self._folders: list[str] = []

    def table(self) -> _Table:
        """Return all that was collected."""
        return _Table(list(self._names), np.array(self._places, np.int64).reshape(-1, 3), self._folders)

    def add(self, archive: int, name: str, offset: int, size: int) -> bool:
        """Collect one file; False if there is one of this name."""
        known = len(self._names)
        self._names[name] = None
        if len(self._names) == known:
            return False
        self._places.extend((archive, offset, size))
        return True

    def read(self, archive: int, path: Path, start: int, end: int, prefix: str = "") -> None:
        """Collect the members of the archive between two bytes of a file.

        Raises:
            DataError: It is compressed, truncated or damaged, or has members that are not wanted.
        """
        origin = f"{path}: {prefix.removesuffix('/')}.tar" if prefix else str(path)
        try:
            with path.open("rb") as stream:
                stream.seek(start)
                beginning = stream.read(6)
                for magic, name in _COMPRESSED.items():
                    if beginning.startswith(magic):
                        raise DataError(f"{origin}: compressed by {name}: cannot be read in place; must be a plain tar")
                stream.seek(start)
                with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8") as members:
                    while (member := members.next()) is not None:
                        members.members = []  # type: ignore[attr-defined]  # a million of them would take a GB
                        if member.size < 0 or member.offset_data + member.size > end:
                            raise DataError(f"{origin}: truncated or damaged at {member.name!r}")
                        self._collect(archive, member, origin, prefix)
                    # Where a header is damaged, tarfile takes it for the end.
                    stream.seek(members.offset)
                    if members.offset + _BLOCK > end or stream.read(_BLOCK) != bytes(_BLOCK):
                        raise DataError(f"{origin}: truncated or damaged at byte {members.offset}")
        except DataError:
            raise
        except Exception as error:  # tarfile raises whatever the damage leads to
            cause = reason(error) or type(error).__name__
            raise DataError(f"{origin}: truncated, damaged or not a tar archive: {cause}") from error

    def _collect(self, archive: int, member: tarfile.TarInfo, origin: str, prefix: str) -> None:
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if member.name.startswith("/") or ".." in parts:
            raise DataError(f"{origin}: {member.name!r} leads out of the archive")
        name = prefix + "/".join(parts)
        if member.isdir():
            self._folders += [name] if parts else []
        elif not member.isreg() or member.issparse():
            raise DataError(f"{origin}: {member.name!r} is a link, a sparse file or a device; must be an ordinary file")
        elif not self.add(archive, name, member.offset_data, member.size):
            raise DataError(f"{origin}: {member.name!r} is there twice; names must differ, over all shards too")

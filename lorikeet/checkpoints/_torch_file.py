"""Files of torch.save, tensor by tensor: a zip with a pickle that says what each tensor is, and with their bytes.

A pickle can run code when it is loaded. This reader knows the few words that tensors are written with and refuses every
other before anything is called; what it makes of them is a list of places in the file, which is then mapped. Nothing is
read until a tensor is asked for, and nothing stays in memory behind it. Writing streams, too: one tensor at a time.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from lorikeet.base.errors import CheckpointError

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
}
MOST_PICKLE_BYTES = 64 << 20  # what names tensors; a model of a thousand layers has 2 MB
ALIGNED = 64  # bytes at which torch.save begins each tensor
_PADDING = 0x4246  # the zip field ("FB") in which it hides the bytes before
_ZIP64_BYTES = 1 << 30  # members from here on say their size in 64 bits


class StoredTensor(NamedTuple):
    """Numbers in the order of `shape`, from byte `start` of `file`."""

    file: Path
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        """The tensor, on pages of the file. Writing to it changes neither file nor other readers."""
        count = math.prod(self.shape)
        if count == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        mapped = np.memmap(self.file, np.uint8, "c", self.start, (count * self.dtype.itemsize,))
        return torch.from_numpy(mapped).view(self.dtype).view(self.shape)


class _Kind(NamedTuple):
    dtype: torch.dtype


class _Storage(NamedTuple):
    dtype: torch.dtype
    key: str
    numel: int


class _Described(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def entries(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name. Raises CheckpointError for a file that is damaged, of the format before torch 1.6,
    or that holds anything besides tensors."""
    try:
        with zipfile.ZipFile(file) as archive:
            root, content = _pickle_of(archive, file)
            found = _Reader(content, file).read()
            return {name: _placed(file, archive, root, name, one) for name, one in found.items()}
    except CheckpointError:
        raise
    except Exception as error:  # zipfile has many ways to stumble over changed bytes
        raise CheckpointError(
            f"{file}: damaged, cut off, or not in torch's zip format",
            given=f"{file.stat().st_size if file.exists() else 0:,} bytes: {error}",
            allowed="a complete file of torch.save, of torch 1.6 or later",
            try_="download the file again",
        ) from error


def _pickle_of(archive: zipfile.ZipFile, file: Path) -> tuple[str, bytes]:
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(names) != 1 or archive.getinfo(names[0]).file_size > MOST_PICKLE_BYTES:
        raise CheckpointError(f"{file}: not a file of torch.save", given=f"{len(names)} members called data.pkl")
    root = names[0].removesuffix("/data.pkl")
    order = f"{root}/byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise CheckpointError(f"{file}: written with the bytes of each number in the other order", allowed="little")
    return root, archive.read(names[0])


def _placed(file: Path, archive: zipfile.ZipFile, root: str, name: str, one: _Described) -> StoredTensor:
    """Where a described tensor lies. Raises CheckpointError for one that is not plain rows inside its member."""
    member = archive.getinfo(f"{root}/data/{one.storage.key}")
    assert archive.fp is not None
    archive.fp.seek(member.header_offset + 26)
    name_bytes, extra_bytes = struct.unpack("<HH", archive.fp.read(4))
    size = one.storage.dtype.itemsize
    plain = tuple(math.prod(one.shape[i + 1 :]) for i in range(len(one.shape)))
    # of a dimension of one, no stride is ever used
    odd = any(stride != wanted for stride, wanted, length in zip(one.stride, plain, one.shape) if length > 1)
    beyond = (one.offset + math.prod(one.shape)) * size > member.file_size
    if odd or beyond or len(one.stride) != len(one.shape) or member.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(
            f"{file}: tensor '{name}' does not lie there as plain rows",
            given=f"shape {one.shape}, strides {one.stride}, {member.file_size:,} bytes",
        )
    start = member.header_offset + 30 + name_bytes + extra_bytes + one.offset * size
    if start + math.prod(one.shape) * size > file.stat().st_size:
        raise CheckpointError(f"{file}: cut off: tensor '{name}' ends behind the file", try_="download the file again")
    return StoredTensor(file, start, one.storage.dtype, one.shape)


class _Reader(pickle.Unpickler):
    """Only the words of a mapping of names to tensors; each stands for a description here, none for a function."""

    def __init__(self, content: bytes, file: Path):
        super().__init__(io.BytesIO(content))
        self.file = file

    def read(self) -> dict[str, _Described]:
        """The mapping. Raises CheckpointError for anything else."""
        try:
            found = self.load()
        except CheckpointError:
            raise
        except Exception as error:  # a pickle is a program: a damaged one fails in any way
            self._refuse(f"{type(error).__name__}: {error}"[:120])
        if not isinstance(found, dict) or not found:
            self._refuse(type(found).__name__)
        for name, one in found.items():
            if not isinstance(name, str) or not isinstance(one, _Described):
                self._refuse(f"'{name}' is a {type(one).__name__}"[:120])
        return found

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in STORAGES:
            return _Kind(STORAGES[name])
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _described
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _first
        raise CheckpointError(
            f"{self.file}: this pickle would call what is no tensor",
            given=f"{module}.{name}"[:120],
            allowed="names and tensors: " + " ".join(STORAGES),
            try_="a copy with safetensors; do not load this file with other programs",
        )

    def persistent_load(self, pid: Any) -> Any:
        if not (isinstance(pid, tuple) and len(pid) == 5 and isinstance(pid[1], _Kind) and isinstance(pid[4], int)):
            self._refuse(f"a storage written as {pid!r}"[:120])
        return _Storage(pid[1].dtype, str(pid[2]), pid[4])

    def _refuse(self, given: str) -> NoReturn:
        allowed = "a mapping of names to tensors"
        raise CheckpointError(f"{self.file}: cannot be read as plain tensors", given=given, allowed=allowed)


def _described(storage: Any, offset: Any, shape: Any, stride: Any, *_others: Any) -> _Described:
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, _Storage) or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("a tensor of odd numbers")
    return _Described(storage, offset, tuple(shape), tuple(stride))


def _first(tensor: Any, *_others: Any) -> Any:
    return tensor


class _AsSaved:
    """A tensor as torch.save writes it down."""

    def __init__(self, storage: _Storage, shape: tuple[int, ...]):
        self.storage, self.shape = storage, shape

    def __reduce__(self) -> Any:
        stride = tuple(math.prod(self.shape[i + 1 :]) for i in range(len(self.shape)))
        rebuild = torch._utils._rebuild_tensor_v2
        return rebuild, (self.storage, 0, self.shape, stride, False, OrderedDict())


class _Writer(pickle.Pickler):
    def persistent_id(self, one: Any) -> Any:
        if not isinstance(one, _Storage):
            return None
        kind = next(name for name, dtype in STORAGES.items() if dtype == one.dtype)
        return "storage", getattr(torch, kind), one.key, "cpu", one.numel


def write(
    file: Path,
    listed: Sequence[tuple[str, torch.dtype, tuple[int, ...]]],
    read: Callable[[str], Tensor],
) -> None:
    """Write (name, dtype, shape) of each tensor as torch.save would, asking `read` for one at a time."""
    content, root = io.BytesIO(), file.stem
    sizes = {name: math.prod(shape) for name, _, shape in listed}
    described = OrderedDict(
        (name, _AsSaved(_Storage(dtype, str(i), sizes[name]), shape)) for i, (name, dtype, shape) in enumerate(listed)
    )
    _Writer(content, protocol=2).dump(described)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.writestr(zipfile.ZipInfo(f"{root}/data.pkl"), content.getvalue())
        archive.writestr(zipfile.ZipInfo(f"{root}/byteorder"), b"little")
        for i, (name, dtype, shape) in enumerate(listed):
            tensor = read(name)
            assert tensor.dtype == dtype and tuple(tensor.shape) == shape, name
            _add(archive, f"{root}/data/{i}", tensor.contiguous().view(-1))
            del tensor
        archive.writestr(zipfile.ZipInfo(f"{root}/version"), b"3\n")


def _add(archive: zipfile.ZipFile, name: str, tensor: Tensor) -> None:
    member = zipfile.ZipInfo(name)
    member.file_size = tensor.nbytes
    wide = tensor.nbytes > _ZIP64_BYTES
    before = archive.start_dir + 30 + len(name) + 4 + 20 * wide  # the size in 64 bits takes 20 bytes of its own
    padding = -before % ALIGNED
    member.extra = struct.pack("<HH", _PADDING, padding) + b"Z" * padding
    with archive.open(member, "w", force_zip64=wide) as out:
        if tensor.numel():
            out.write(tensor.view(torch.uint8).numpy().data)

"""Read tensors from pickle files without running the code that the files ask for.

A pickle names functions and classes, which its reader calls. Here no name leads outside of this module: the
few that rebuild tensors and arrays are functions of this module, and every other name becomes an empty class
that stores attributes and does nothing. So the tensors of Lightning checkpoints (with hyperparameters) and of
whole pickled models can be read without their code.
"""

import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

_MAGIC = 0x1950A86A20F9469CFC6C  # start of files of torch.save before it wrote zip files
_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
_NUMBERS = "fiub"  # numpy kinds of number types
_REFUSED = (  # errors that damaged or malicious content can raise
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


class UnreadableError(Exception):
    """The content is damaged, or not written by `torch.save` or pickle."""


class Inert:
    """A placeholder for an object of an unknown class; `attributes` is its stored state."""

    attributes: Any


class Held:
    """Holds a tensor so that a pickle cannot call its methods."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor | None) -> None:
        self.tensor = tensor


def read_inert(path: Path) -> Any:
    """Read a file of `torch.save` (zip or older) or pickle: tensors as `Held`, unknown objects as `Inert`.

    Raises:
        UnreadableError: the file is neither, or damaged.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _read_zip(archive)
        with path.open("rb") as file:
            return _read_stream(file, num_bytes=path.stat().st_size)
    except _REFUSED as error:
        raise UnreadableError((str(error).splitlines() or [type(error).__name__])[0][:200]) from None


def _read_zip(archive: zipfile.ZipFile) -> Any:
    name = next(name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")
    folder = name.removesuffix("data.pkl")
    order_file = folder + "byteorder"
    if order_file in archive.namelist() and archive.read(order_file) != b"little":
        raise ValueError("numbers are stored big-endian")
    storages: dict[str, Tensor] = {}

    def load(dtype: torch.dtype, key: str, num: int) -> Tensor:
        if key not in storages:
            content = bytearray(archive.read(f"{folder}data/{key}"))
            storages[key] = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0)
        return storages[key].view(dtype) if storages[key].numel() else torch.empty(0, dtype=dtype)

    with archive.open(name) as file:
        return _unpickle(file, load)


def _read_stream(file: BinaryIO, *, num_bytes: int) -> Any:
    """Read one pickle, or the old format of torch.save: several pickles, then the values of the storages."""
    storages: dict[str, Tensor] = {}

    def load(dtype: torch.dtype, key: str, num: int) -> Tensor:
        if not 0 <= num * dtype.itemsize <= num_bytes:
            raise ValueError("a tensor is larger than the file")
        return storages.setdefault(key, torch.empty(num, dtype=dtype))

    first = _unpickle(file, load)
    if first != _MAGIC:
        return first
    _unpickle(file, load), _unpickle(file, load)  # version, machine
    content = _unpickle(file, load)
    for key in _unpickle(file, load):
        storage = storages[key]
        num = int.from_bytes(file.read(8), "little")
        data = file.read(num * storage.element_size())
        if num != storage.numel() or len(data) != num * storage.element_size():
            raise EOFError("it is cut short")
        if num:
            storage.copy_(torch.frombuffer(bytearray(data), dtype=storage.dtype))
    return content


# ---- Names that a pickle may use


def _unpickle(file: Any, load: Callable[[torch.dtype, str, int], Tensor]) -> Any:
    # New functions and classes for each file, so that one file cannot change them for the next.
    known = _make_functions()

    # The reader in Python, because that in C reserves memory for all numbers up to the largest that a pickle
    # gives to a value: a file of 69 bytes took 3 GB.
    class Reader(pickle._Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if module in ("torch", "torch.storage") and name in _STORAGES:
                return _make_type(dtype=_STORAGES[name])
            return known.get((module, name)) or _make_type()

        def persistent_load(self, saved: Any) -> Held:
            kind, storage, key, _, num = saved[:5]
            if kind != "storage":
                raise pickle.UnpicklingError("it refers to something other than storages")
            return Held(load(storage.dtype, str(key), num))

    return Reader(file, encoding="latin1").load()


def _make_type(dtype: torch.dtype | None = None) -> type:
    class Stub(Inert):
        def __new__(cls, *arguments: Any, **keywords: Any) -> Any:
            stub = super().__new__(cls)
            stub.attributes = {}
            return stub

        def __init__(self, *arguments: Any, **keywords: Any) -> None: ...

        def __setstate__(self, state: Any) -> None:
            self.attributes = state

        def __setitem__(self, key: Any, value: Any) -> None:
            if isinstance(self.attributes, dict):
                self.attributes[key] = value

        def append(self, value: Any) -> None: ...
        def extend(self, values: Any) -> None: ...
        def add(self, value: Any) -> None: ...

    Stub.dtype = dtype  # type: ignore[attr-defined]
    return Stub


def _make_functions() -> dict[tuple[str, str], Any]:
    def rebuild_tensor(storage: Held, offset: int, size: Any, stride: Any, *rest: Any) -> Held:
        assert storage.tensor is not None
        return Held(storage.tensor.as_strided(tuple(size), tuple(stride), offset))  # checks the bounds

    def rebuild_parameter(data: Any, *rest: Any) -> Any:
        return data

    def encode(text: str, encoding: str = "latin1") -> bytes:
        return text.encode("latin1")

    class Dtype:
        def __init__(self, code: str, *rest: Any) -> None:
            self.code, self.is_big = str(code), False

        def __setstate__(self, state: Any) -> None:
            self.is_big = state[1] == ">"

    class Array(Held):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(None)

        def __setstate__(self, state: Any) -> None:
            _, shape, dtype, is_fortran, content = state
            if not isinstance(dtype, Dtype) or dtype.code[:1] not in _NUMBERS or isinstance(content, list):
                return
            data = content.encode("latin1") if isinstance(content, str) else content
            numbers = np.frombuffer(data, np.dtype(dtype.code).newbyteorder(">" if dtype.is_big else "<"))
            array = numbers.reshape(shape, order="F" if is_fortran else "C")
            self.tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))

    return {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
        ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): rebuild_parameter,
        ("_codecs", "encode"): encode,
        ("numpy", "dtype"): Dtype,
        ("numpy", "ndarray"): Array,
        ("numpy.core.multiarray", "_reconstruct"): Array,
        ("numpy._core.multiarray", "_reconstruct"): Array,
    }

"""Read files of weights of many programs as tensors by name; the content decides the format, not the suffix.

Containers may be nested: `{"state_dict": {"module.conv1.weight": ...}}` is `state_dict.module.conv1.weight`.
Code in files is never run: files that PyTorch refuses with `weights_only` are read by `inert_pickle`.
"""

import json
import tarfile
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from byol.base.errors import CheckpointError
from byol.base.records import TENSORS_KEY, check_tensors
from byol.weights.inert_pickle import Held, Inert, UnreadableError, read_inert

State = dict[str, Tensor]

HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # in a folder of the Hugging Face hub
_INDEX = ".index.json"  # appended to these names: an index of the files that hold the tensors
_DEPTH = 24  # largest number of nested containers
_OF_MODULES = {"_parameters", "_buffers", "_modules"}  # in a pickled model: not part of tensor names
_NO_TENSORS = (  # first bytes of files that hold no tensors, their kind, and what to do
    (b"version https://git-lfs", "a Git LFS pointer, not the file", "get the file with `git lfs pull`"),
    (b"<", "a web page or XML, not weights", "download the file again"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it first"),
    (b"\x89HDF", "HDF5 (Keras)", "save the weights as .safetensors"),
    (b"{", "JSON text, not weights", "name the weights file beside it"),
)


def holds_weights(path: Path) -> bool:
    """Return whether `path` is a file, or a folder of the Hugging Face hub."""
    return path.is_file() or (path.is_dir() and _find_in_folder(path) is not None)


def split_source(source: str) -> tuple[Path, str | None]:
    """Split `FILE` or `FILE:PREFIX` into path and prefix; a file with the full name has priority."""
    file, colon, prefix = source.rpartition(":")
    if colon and prefix and not Path(source).exists() and Path(file).exists():
        return Path(file), prefix
    return Path(source), None


def read_weights(path: str | Path, *, key: str = "weights") -> State:
    """Read the tensors of a file or folder by name, on the CPU; names of containers are joined by dots.

    Raises:
        CheckpointError: it cannot be read or holds no tensors; the message names `key` and what to do.
    """
    path = Path(path)
    try:
        state = _read_folder(path) if path.is_dir() else _read_file(path)
    except _NotWeightsError as error:
        raise CheckpointError(f"{key}: {path} is {error}") from None
    except (SafetensorError, UnreadableError, OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        reason = show((str(error).splitlines() or [type(error).__name__])[0][:200])
        if path.is_file() and _is_text(path):
            raise CheckpointError(f"{key}: {path} is text, not weights; name the weights file") from None
        raise CheckpointError(
            f"{key}: {path} cannot be read ({reason}): it is damaged, cut short or not a weights file; copy "
            "or download it again, or save the model's state_dict() as .safetensors"
        ) from None
    if not state:
        raise CheckpointError(
            f"{key}: {path} holds no named tensors; give a file with a model's state_dict()"
        )
    return state


def show(name: str) -> str:
    """Make a name from a file safe to print: escape control characters and shorten it."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name[:200])
    return text if len(name) <= 200 else text + "..."


class _NotWeightsError(Exception):
    """The file holds no weights; the message says what it is and what to do."""


def _check_own(path: Path) -> None:
    """Compare a safetensors file of byol with its checksum; those of others have none."""
    with path.open("rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    if TENSORS_KEY.encode() in header:
        try:
            check_tensors(path.read_bytes())
        except ValueError as error:
            raise _NotWeightsError(f"damaged ({error}); copy it again") from None


def _read_file(path: Path) -> State:
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise _NotWeightsError("empty; copy or download it again")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**27:
        _check_own(path)
        return load_file(path)
    start = head.lstrip()
    for signature, what, advice in _NO_TENSORS:
        if start.startswith(signature):
            raise _NotWeightsError(f"{what}; {advice}")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith(".npy") for name in names):
            return _read_npz(path)
        if not any(name.rpartition("/")[2] == "data.pkl" for name in names):
            raise _NotWeightsError("a zip file without PyTorch or NumPy weights; unpack it first")
    elif head.startswith(b"PK\x03\x04"):
        raise _NotWeightsError("cut short, because its end is missing; copy or download it again")
    elif head[257:262] == b"ustar" and tarfile.is_tarfile(path):
        raise _NotWeightsError(
            "a tar file, as PyTorch wrote them before 2017; unpack it, or load it with torch.load and save "
            "the model's state_dict() again"
        )
    return dict(_flatten(_load(path)))


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(512)
    return all(32 <= byte < 127 or byte in b"\t\r\n\f" for byte in head)


def _load(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats and TorchScript, which can be read
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # damaged content can raise any error, for example struct.error
        return read_inert(path)  # refuses damaged files


def _read_npz(path: Path) -> State:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}  # files of other kinds are bytes
        numbers = {
            name: array
            for name, array in found.items()
            if isinstance(array, np.ndarray) and array.dtype.kind in "fiub"
        }
        return {name: torch.from_numpy(array) for name, array in numbers.items()}
    except Exception as error:  # NumPy and zipfile raise anything for damaged content
        raise UnreadableError(str(error) or type(error).__name__) from None


def _read_folder(folder: Path) -> State:
    file = _find_in_folder(folder)
    if file is None:
        raise _NotWeightsError(f"a folder without {' or '.join(HUB_FILES)}; name a weights file")
    if not file.name.endswith(_INDEX):
        return _read_file(file)
    index = json.loads(file.read_bytes())
    parts = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(parts, dict):
        raise _NotWeightsError(f"a folder whose {file.name} lists no files; copy or download it again")
    names = sorted({Path(str(name)).name for name in parts.values()})
    return {name: value for part in names for name, value in _read_file(folder / part).items()}


def _find_in_folder(folder: Path) -> Path | None:
    files = (folder / (name + suffix) for name in HUB_FILES for suffix in ("", _INDEX))
    return next((file for file in files if file.is_file()), None)


def _flatten(
    content: Any, prefix: str = "", depth: int = 0, above: tuple[int, ...] = ()
) -> Iterator[tuple[str, Tensor]]:
    """Iterate over all tensors, with the names of their containers."""
    if isinstance(content, Held):
        content = content.tensor
    if isinstance(content, Tensor):
        if prefix and content.layout is torch.strided and not content.is_quantized:
            yield prefix, content.detach()
        return
    if isinstance(content, Inert):
        content = content.attributes
    if depth > _DEPTH or id(content) in above:
        return
    if isinstance(content, dict):
        items: Sequence[tuple[Any, Any]] = list(dict.items(content))
    elif isinstance(content, list | tuple):
        items = list(enumerate(content))
    else:
        return
    for name, value in items:
        inner = prefix if name in _OF_MODULES else f"{prefix}.{name}".lstrip(".")
        yield from _flatten(value, inner, depth + 1, (*above, id(content)))

"""Checksums inside of the files they protect: of JSON records, and of the tensors in a safetensors file.

A file without a checksum is of an earlier version, or somebody has taken the line out to change the file by
hand: it is read as it is.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

KEY = "sha256"
DIFFERS = (
    f'its checksum differs: the file is damaged, or was changed by hand (without the line "{KEY}" it is read)'
)


def add_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a JSON file, as it will be read, with its checksum as the last field."""
    fields: dict[str, Any] = json.loads(json.dumps(content))
    return {**fields, KEY: _digest(fields)}


def take_checksum(fields: dict[str, Any]) -> None:
    """Take the checksum out of what was read from a JSON file.

    Raises:
        ValueError: it differs.
    """
    expected = fields.pop(KEY, None)
    if expected is not None and expected != _digest(fields):
        raise ValueError(DIFFERS)


def _digest(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def seal_tensors(content: bytes) -> bytes:
    """A safetensors file with a checksum of all its values added to the header."""
    header, values = _split(content)
    header["__metadata__"] = {**header.get("__metadata__", {}), KEY: hashlib.sha256(values).hexdigest()}
    written = json.dumps(header, separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)
    return b"".join([len(written).to_bytes(8, "little"), written, values])


def check_tensors(content: bytes) -> None:
    """Compare the values of a safetensors file with the checksum in its header.

    Raises:
        ValueError: it differs, or the header cannot be read.
    """
    header, values = _split(content)
    expected = header.get("__metadata__", {}).get(KEY)
    if expected is not None and expected != hashlib.sha256(values).hexdigest():
        raise ValueError("its checksum differs")


def _split(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """Header and values of a safetensors file."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise ValueError("its header is not one of safetensors")
    return header, memoryview(content)[start:]

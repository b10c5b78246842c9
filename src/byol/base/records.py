"""Checksums inside of the files that they protect: JSON records, and the tensors of a safetensors file.

A file without a checksum is read as it is: an earlier version wrote it, or somebody edited it and deleted the
checksum.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

KEY, TENSORS_KEY = "sha256", "byol_sha256"  # of a JSON file; in the metadata of a safetensors file
_DIFFERS = f'its checksum differs: it is damaged, or somebody edited it (then delete its line "{KEY}")'


def add_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a JSON file as it will be read, with its checksum as the last field."""
    fields: dict[str, Any] = json.loads(json.dumps(content))
    return {**fields, KEY: _digest(fields)}


def take_checksum(fields: dict[str, Any]) -> None:
    """Remove the checksum from the content of a JSON file, and compare it.

    Raises:
        ValueError: it differs.
    """
    expected = fields.pop(KEY, None)
    if expected is not None and expected != _digest(fields):
        raise ValueError(_DIFFERS)


def _digest(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def seal_tensors(content: bytes) -> bytes:
    """The same safetensors file with a checksum in the metadata of its header."""
    header, values = _split(content)
    checksum = _digest_tensors(header, values)
    header["__metadata__"] = {**header.get("__metadata__", {}), TENSORS_KEY: checksum}
    written = json.dumps(header, separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)
    return b"".join([len(written).to_bytes(8, "little"), written, values])


def check_tensors(content: bytes) -> None:
    """Compare a safetensors file with the checksum in its header, if there is one.

    Raises:
        ValueError: it differs, or the header cannot be read.
    """
    header, values = _split(content)
    expected = header.get("__metadata__", {}).get(TENSORS_KEY)
    if expected is not None and expected != _digest_tensors(header, values):
        raise ValueError("its checksum differs")


def _digest_tensors(header: Mapping[str, Any], values: memoryview) -> str:
    """Of names, shapes and values; not of the metadata, which holds the checksum."""
    tensors = {key: value for key, value in header.items() if key != "__metadata__"}
    digest = hashlib.sha256(json.dumps(tensors, sort_keys=True).encode())
    digest.update(values)
    return digest.hexdigest()


def _split(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """Header and values of a safetensors file."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise ValueError("its header is not one of safetensors")
    return header, memoryview(content)[start:]

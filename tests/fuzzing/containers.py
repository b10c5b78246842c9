"""Targets that hold files or weights in files of their own: tar files, and steps that were not applied."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import torch
from torch import nn

from byol.base.errors import DataError
from byol.config import load_config
from byol.data.decode.image import load as load_image
from byol.data.sources.opening import open_source
from byol.training import skipped
from fuzzing import seeds
from fuzzing.mutate import mend_tar, mutate, mutate_value

Try = Callable[[Random], object]
WORDS = (
    b"ustar\0", b"ustar  \0", b"00", b"././@LongLink", b"GNU.sparse.map=0,1", b"20 path=../../a.png\n",
    b"17 size=99999999\n", b"path=", b"../", b"/", b"\0" * 512, b"L", b"x", b"g", b"S", b"1", b"2", b"5",
    b"\x80\0\0\0\0\0\0\1", b"\xff" * 12, b"77777777777\0", b".cls", b".json", b"{\"label\": 1}",
)  # fmt: skip


def tars(folder: Path) -> Try:
    """Every image that is found is read as well."""
    picture = seeds.by_pillow("PNG", seeds.GREY)
    known = [
        _make_tar(form, picture) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    ]
    path = folder / "a.tar"
    datas = [
        load_config(None, [f"data.source={path}", *more], preset="default").data
        for more in ((), ("data.skip_unreadable=true",))
    ]

    def attempt(random: Random) -> object:
        content = mutate(random.choice(known), known, random, words=WORDS)
        path.write_bytes(mend_tar(content) if random.random() < 0.8 else content)
        source = open_source(random.choice(datas))
        for index in range(len(source)):
            name = source.names(index)
            assert name.startswith("a.tar/") and ".." not in name.split("/"), name
            with suppress(DataError):
                load_image(source.item(index))
        return source.labels

    return attempt


def list_tars() -> list[bytes]:
    """A tar file of each format."""
    picture = seeds.by_pillow("PNG", seeds.GREY)
    return [
        _make_tar(form, picture) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    ]


def _make_tar(form: int, picture: bytes) -> bytes:
    file, long = io.BytesIO(), "" if form == tarfile.USTAR_FORMAT else "n" * 120
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, content in (
            ("a/1.png", picture),
            ("a/1.cls", b"3"),
            (f"b/{long}2.png", picture),
            ("b/2.json", b'{"label": "cat", "x": [1]}'),
            ("c", picture),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return file.getvalue()


def skipped_steps(folder: Path) -> Try:
    """The record of a step, and its weights under a name with the right checksum."""
    network, other = nn.Linear(2, 3), nn.Linear(2, 3)
    with torch.no_grad():
        first = skipped.write_weights(folder, network, step=3)
    weights = (folder / skipped.FOLDER / first).read_bytes()
    record = skipped.Skipped(3, "nan", "nan", 0.1, 0, 1, 2, 1, 1, [0, 1], ["a", "b"], weights=first)
    path = skipped.write(folder, record)
    text = path.read_bytes()
    fields = {key: value for key, value in json.loads(text).items() if key != "sha256"}

    def attempt(random: Random) -> object:
        if random.random() < 0.5:  # the record, otherwise the weights
            as_text = random.random() < 0.3
            spoiled = (
                mutate(text, [text], random) if as_text else json.dumps(mutate_value(fields, random)).encode()
            )
            path.write_bytes(spoiled)
            return skipped.read(folder, 3)
        content = mutate(weights, [weights, text], random)
        name = f"step-00000003-{hashlib.sha256(content).hexdigest()[:12]}.safetensors"
        (folder / skipped.FOLDER / name).write_bytes(content)
        try:
            skipped.load_weights(folder, skipped.Skipped(**{**vars(record), "weights": name}), other)
        finally:
            (folder / skipped.FOLDER / name).unlink()
        return name

    return attempt

"""What is damaged, and the reader that gets it. Each target tries one input a call.

A reader must return a result or raise a `ByolError`. Everything else that it raises is a finding.
"""

import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import nn

from byol.config import dump_config, load_config
from byol.data.decode import formats
from byol.data.decode.arrays import find_shape
from byol.data.decode.image import load as load_image
from byol.data.decode.image import peek
from byol.data.labels.label_file import match_labels, read_list
from byol.data.pack.images import open_images
from byol.data.pack.packed import ARRAYS, CHECKSUMS, digest_file, open_pack
from byol.data.sources.opening import open_source
from byol.encoder.encoder import load, save_encoder
from byol.encoder.spec import read_spec
from byol.method.networks import build_encoder
from byol.reporting.embedding_map import place_by_pca, to_uint16
from byol.reporting.explorer import Explorer, open_server
from byol.runfolder import checkpoint
from byol.weights.files import read_weights
from fuzzing import containers, seeds
from fuzzing.mutate import mend_png, mutate, mutate_value
from runs import configure, make_run, make_spec, write_images
from trained import open_embedded

Try = Callable[[Random], object]
MAX_PIXELS = 2**20  # instead of byol's limit, so that a reader that ignores the limit shows


# ---- Configurations

CONFIGS = (
    "trainer:\n  max_epochs: 3\n  seed: 0\n  precision: fp32\n",
    "preset: default\ndata:\n  source: images/\n  channels: [0, 2]\n  alpha: keep\n",
    "data_transforms:\n  input_shape: [16, 16, 3]\n"
    "  view1: &v {flip: 0.5, crop_area: [0.2, 1.0]}\n  view2: *v\n",
    "optimizer: {name: lars, params: {lr: 3e-4, momentum: .9}, warmup_epochs: 1}\n# text\n",
    "network:\n  name: 'resnet18'\n  projection_head:\n    mlp_hidden_size: 32\n  fine_tune_from: ~\n",
    'evaluation:\n  labels: "a b.csv"\n  folds: 5\n  test: |\n    text\n',
)
YAML_WORDS = tuple(
    word.encode()
    for word in (
        "!!python/name:os.system", "!!binary ", "&a ", "*a", "<<: ", "? ", "- ", ": ", "---\n", "...\n",
        "%YAML 1.1\n", "[", "]", "{", "}", "'", '"', "|", ">", "null", "~", "true", "1e999", "-.inf", ".nan",
        "0x1F", "1_000", "\t", "\n", "\\x00", "\ufeff", "\u2028", "99999999999999999999", "trainer",
        "max_hours", "data", "view", "preset", "paper", "s", "auto", "none", "=", ".", ",", "--",
    )
)  # fmt: skip
_OVERRIDES = (
    "trainer.max_epochs=2", "data_transforms.input_shape=[16,16,3]",
    "data_transforms.view.crop_area=(0.2, 1)",
    "optimizer.params.lr=1e-3", "network.name=resnet18", "data.source=a b/c", "--trainer.max-hours=0.5",
    "preset=paper", "data.channels=[0,1]", "evaluation.groups={a: 1}", "trainer.loggers=[tensorboard]",
)  # fmt: skip


def configurations(folder: Path) -> Try:
    whole = dump_config(load_config(None, [], preset="demo")).encode()
    known = [text.encode() for text in CONFIGS]
    path = folder / "config.yaml"

    def attempt(random: Random) -> object:
        text = whole if random.random() < 0.01 else random.choice(known)  # the whole one takes long to parse
        path.write_bytes(mutate(text, known, random, words=YAML_WORDS))
        return load_config(path, [], preset=None)

    return attempt


def overrides(folder: Path) -> Try:
    known = [text.encode() for text in _OVERRIDES]

    def attempt(random: Random) -> object:
        texts = [
            mutate(random.choice(known), known, random, words=YAML_WORDS)
            for _ in range(random.choice((1, 1, 2)))
        ]
        # As the system passes arguments: bytes that are not UTF-8 are surrogates, and there is no NUL.
        given = [text.decode("utf-8", "surrogateescape").replace("\0", "") for text in texts]
        return load_config(None, given, preset=random.choice((None, "default", "demo", "classic")))

    return attempt


# ---- Lists and labels

NAMES = ["a/0.png", "a/1.png", "b/2.JPG", "größe 3.tif"]
TABLES = (
    "file,label\na/0.png,cat\na/1.png,dog\nb/2.JPG,cat\ngröße 3.tif,dog\n".encode(),
    b'"file";"label"\n"a/0.png";"cat"\n"a/1.png";"do;g"\n',
    b"file\tlabel\tx\na/0.png\t1\t2.5\na/1.png\t2\t\n",
    b"filename,class\r\n./a/0.png,NA\r\n/b/2.jpg,1.0\r\n",
    b"a/0.png\na/1.png\n\nb/2.JPG\n",
    b"path,id,label\nC:\\\\a\\\\0.png,1,x\n0.png,2,y\n",
    "file,label\na/0.png,cat\na/1.png,dög\n".encode("utf-16"),
    "file,label\na/0.png,dög\n".encode("latin1"),
)
TABLE_WORDS = (
    b",", b";", b"\t", b'"', b"'", b"\n", b"\r", b"\r\n", b"\0", b"file", b"label", b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xfe\xff", b"\xe9", b"../../", b"/", b"\\", b"a/0.png", b"NaN", b"=cmd()", b"\xed\xa0\x80", b"sep=;\n",
)  # fmt: skip


def lists(folder: Path) -> Try:
    def attempt(random: Random) -> object:
        path = folder / random.choice(("list.txt", "list.csv", "list.tsv"))
        path.write_bytes(mutate(random.choice(TABLES), TABLES, random, words=TABLE_WORDS))
        return list(read_list(path).files)

    return attempt


def labels(folder: Path) -> Try:
    path = folder / "labels.csv"

    def attempt(random: Random) -> object:
        path.write_bytes(mutate(random.choice(TABLES), TABLES, random, words=TABLE_WORDS))
        return match_labels(path, NAMES)

    return attempt


def arrays(folder: Path) -> Try:
    """One array of many images, and the shapes by which the layout of a folder is found."""
    formats.MAX_PIXELS = MAX_PIXELS
    known = [seeds.npy(np.stack([values] * 2)) for values in (seeds.GREY, seeds.COLOUR, seeds.FLOATS)]
    known += [seeds.npz(np.stack([seeds.COLOUR] * 2))]

    def attempt(random: Random) -> object:
        path = folder / random.choice(("images.npy", "images.npz"))
        path.write_bytes(mutate(random.choice(known), known, random))
        if random.random() < 0.3:
            return find_shape(path)
        source = open_source(configure(path).data)
        return [source.item(index) for index in range(min(2, len(source)))]

    return attempt


# ---- Packs, checkpoints, weights, encoders


def packs(folder: Path) -> Try:
    """Any file of a pack; mostly with right checksums, as an attacker would write them."""
    write_images(folder / "images", num=2)
    config = configure(folder / "images", f"data.packs={folder / 'packs'}")
    place = open_images(config, folder / "run", console=None).folder
    names = ["pack.json", "images.npy", *ARRAYS, CHECKSUMS]
    files = {name: (place / name).read_bytes() for name in names}
    content = json.loads(files["pack.json"])
    del content["sha256"]

    def attempt(random: Random) -> object:
        name = random.choice(["pack.json", *names])
        try:
            if name == "pack.json" and random.random() < 0.7:
                text = json.dumps(mutate_value(content, random)).encode()
            else:
                text = mutate(files[name], list(files.values()), random)
            (place / name).write_bytes(text)
            if name != "pack.json" and random.random() < 0.9:
                entry = {"bytes": len(text), "blake2b": digest_file(place / name)}
                entries = content["files"] | {name: entry}
                (place / "pack.json").write_text(json.dumps(content | {"files": entries}))
            packed = open_pack(place)
            return list(packed.names), packed.read(np.arange(len(packed))), packed.bits
        finally:
            for changed in ("pack.json", name):
                (place / changed).write_bytes(files[changed])

    return attempt


def checkpoints(folder: Path) -> Try:
    """The container with a right checksum beside it, and its content."""
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for (
        parameter
    ) in network.parameters():  # no backward pass, which a forked process cannot have after another
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    path = checkpoint.save(
        folder, 1, byol=network, optimizer=optimizer, data_fingerprint="a", num_microbatches=1,
        time_budget=None, best={"done": 1, "value": 0.5}, watch={"health": {"verdict": "healthy"}},
    )  # fmt: skip
    whole = path.read_bytes()
    state = torch.load(io.BytesIO(whole), weights_only=True)

    def attempt(random: Random) -> object:
        if random.random() < 0.5:
            buffer = io.BytesIO()
            torch.save(mutate_value(state, random), buffer)
            data = buffer.getvalue()
        else:
            data = mutate(whole, [whole], random)
        path.write_bytes(data)
        path.with_name(path.name + ".sha256").write_text(hashlib.sha256(data).hexdigest())
        found, _ = checkpoint.read_latest(folder)
        assert found is not None
        return checkpoint.restore(folder, found, byol=network, optimizer=optimizer, data_fingerprint="a")

    return attempt


def _make_weights() -> dict[str, bytes]:
    """Files of weights of each kind, by their names."""
    tensors = {"conv.weight": torch.randn(2, 3), "conv.bias": torch.zeros(2, dtype=torch.float16)}
    files: dict[str, bytes] = {}
    for name, is_zip in (("zip.pt", True), ("old.pt", False)):
        buffer = io.BytesIO()
        content = {"state_dict": tensors, "model": nn.Linear(1, 1), "epoch": 3}
        torch.save(content, buffer, _use_new_zipfile_serialization=is_zip)
        files[name] = buffer.getvalue()
    buffer = io.BytesIO()
    np.savez(buffer, **{name: value.numpy() for name, value in tensors.items()})
    files["arrays.npz"] = buffer.getvalue()
    from safetensors.torch import save

    files["tensors.safetensors"] = save(tensors)
    files["pickle.pkl"] = _pickled(tensors)
    return files


def list_weights() -> list[bytes]:
    return list(_make_weights().values())


def weights(folder: Path) -> Try:
    files = _make_weights()
    hub = folder / "hub"
    hub.mkdir()
    index = {"weight_map": {"a": "part.safetensors", "b": "part.safetensors"}}
    (hub / "part.safetensors").write_bytes(files["tensors.safetensors"])

    def attempt(random: Random) -> object:
        if random.random() < 0.1:
            (hub / "model.safetensors.index.json").write_text(json.dumps(mutate_value(index, random)))
            return read_weights(hub)
        name = random.choice(list(files))
        path = folder / name
        path.write_bytes(mutate(files[name], list(files.values()), random))
        return read_weights(path)

    return attempt


def _pickled(tensors: dict[str, torch.Tensor]) -> bytes:
    import pickle

    return pickle.dumps({name: value.numpy() for name, value in tensors.items()}, protocol=2)


def encoders(folder: Path) -> Try:
    torch.manual_seed(0)
    spec = make_spec()
    module = build_encoder(spec.name, channels=3, view_px=spec.view_px, stem=spec.stem)
    save_encoder(folder, module, spec)
    files = {name: (folder / name).read_bytes() for name in ("encoder.json", "encoder.safetensors")}
    content = json.loads(files["encoder.json"])
    del content["sha256"]

    def attempt(random: Random) -> object:
        name = "encoder.json" if random.random() < 0.97 else "encoder.safetensors"
        try:
            if name == "encoder.json" and random.random() < 0.8:
                (folder / name).write_text(json.dumps(mutate_value(content, random)))
            else:
                head = files[name][:4000]  # the header of the tensors, rather than their values
                (folder / name).write_bytes(mutate(head, [head], random) + files[name][4000:])
            found = read_spec(folder / "encoder.json")
            if name == "encoder.safetensors" or random.random() < 0.05:
                return load(folder, device="cpu")
            return found
        finally:
            (folder / name).write_bytes(files[name])

    return attempt


# ---- Images


def images(folder: Path, *, kind: str) -> Try:
    formats.MAX_PIXELS = Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    known = seeds.IMAGES[kind]()
    known = known or [b""]  # the package is missing

    def attempt(random: Random) -> object:
        data = mutate(random.choice(known), known, random)
        if kind == "PNG" and random.random() < 0.7:
            data = mend_png(data)
        return load_image(data) if random.random() < 0.7 else peek(data)

    return attempt


# ---- The explorer

_HTTP = (
    b"GET ", b"POST ", b"HEAD ", b"HTTP/1.1", b"HTTP/9.9", b"\r\n", b"\n", b"\r\n\r\n", b": ", b"Host: ",
    b"Origin: ",
    b"Origin: null\r\n", b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"X-Suffix: ", b"../",
    b"%2e%2e%2f", b"..%2f..%2fetc/passwd", b"%00", b"%ff", b"/thumb/", b"/near/", b"/column/",
    b"/layout/PCA", b"//", b"?a=b",
    b"-1", b"99999999999999999999", b"Expect: 100-continue\r\n", b"Connection: keep-alive\r\n", b"\xe9",
    b"\0",
)  # fmt: skip


class _Socket:
    """The side of the server of a connection that has sent everything."""

    def __init__(self, request: bytes) -> None:
        self._request, self.answer = request, b""

    def makefile(self, mode: str, buffering: int = -1) -> io.BytesIO:
        return io.BytesIO(self._request)

    def sendall(self, data: bytes) -> None:
        self.answer += bytes(data)

    def settimeout(self, seconds: float | None) -> None: ...


def explorer(folder: Path) -> Try:
    write_images(folder / "images", num=4)
    make_run(folder / "run", folder / "images", f"data.packs={folder / 'packs'}")
    embedded = open_embedded(folder / "run")
    pca = to_uint16(place_by_pca(embedded.directions, seed=0))
    page = Explorer("a", "verdict", load(folder / "run", device="cpu"), embedded, {"PCA": pca}, ())
    server = open_server(page)
    host = f"127.0.0.1:{server.server_port}"
    picture = seeds.by_pillow("PNG", seeds.COLOUR)
    token = server.token.encode()
    heads = [
        f"GET /{server.token}{path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        for path in ("/", "/map.json", "/names.json", "/layout/PCA", "/column/0", "/thumb/3", "/near/2")
    ]
    heads.append(
        f"POST /{server.token}/search HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nX-Suffix: .png\r\n"
        f"Content-Length: {len(picture)}\r\n\r\n".encode()
        + picture
    )

    def attempt(random: Random) -> object:
        request = mutate(random.choice(heads), heads, random, words=_HTTP)
        socket = _Socket(request)
        server.RequestHandlerClass(socket, ("127.0.0.1", 1), server)  # type: ignore[arg-type]
        answer, first = socket.answer, request.split(b"\n")[0]
        is_failure = answer.startswith(b"HTTP/1.0 500") or b"Traceback" in answer
        assert not is_failure, answer[:200]
        if answer.startswith(b"HTTP/1.0 200"):
            assert b"/" + token in first, "answered without the token"
            assert re.search(rb"(?im)^host\s*:\s*(127\.0\.0\.1|localhost)", request), "answered another host"
        return answer

    return attempt


TARGETS: dict[str, Callable[[Path], Try]] = {
    "configuration": configurations,
    "overrides": overrides,
    "lists": lists,
    "labels": labels,
    "arrays": arrays,
    "packs": packs,
    "checkpoints": checkpoints,
    "weights": weights,
    "encoders": encoders,
    "tars": containers.tars,
    "skipped steps": containers.skipped_steps,
    **{f"image {kind}": partial(images, kind=kind) for kind in seeds.IMAGES},
    "explorer": explorer,
}


def prepare(name: str, folder: Path) -> Try:
    """Make the files of a target in an empty folder; return what tries one input."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return TARGETS[name](folder)

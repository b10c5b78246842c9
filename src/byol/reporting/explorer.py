"""`byol explore`: a local web page to browse the images of a run, also a large number of them.

The server listens only on 127.0.0.1. Every address begins with a random token. Without the token, or with
another Host header (DNS rebinding by a page elsewhere), the answer is 403. Images are addressed by their row
number, so no address is a path. The PCA map is there at once; t-SNE and UMAP follow when they are ready.
"""

import json
import re
import secrets
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import torch
from jaxtyping import Float32, UInt16

from byol.base.console import Count, Say
from byol.base.errors import ByolError, ConfigError
from byol.config import write_override
from byol.encoder.encoder import Encoder, load
from byol.metrics.neighbours import find_nearest
from byol.pictures.page import render_page
from byol.pictures.thumbnails import draw_thumbnail, encode
from byol.reporting.embedding_map import (
    Embedded,
    list_slow_maps,
    open_run_images,
    place_by_pca,
    place_most_slowly,
    to_uint16,
)
from byol.reporting.report import WEB
from byol.reporting.report_parts import summarise
from byol.reporting.run_summary import Json, read_summary

NUM_NEAR = 24  # images in the result of a search
THUMB_PX = 128
_READ_TIMEOUT_S = 30.0  # a client that sends nothing for so long is disconnected
_MOST_BYTES = 64 * 2**20  # largest picture to search by
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")
_PAGE_POLICY = (
    "default-src 'none'; img-src 'self' blob: data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'"
)


@dataclass(eq=False)
class Explorer:
    """The content of the page and the answers to its requests; `layouts` grows when slow maps are ready."""

    title: str
    verdict: str
    encoder: Encoder
    embedded: Embedded
    layouts: dict[str, UInt16[np.ndarray, "image 2"]]
    waiting: tuple[str, ...] = ()  # maps that are being computed
    _embedding: threading.Lock = field(default_factory=threading.Lock)

    def describe(self) -> Json:
        """Return everything except the arrays, as JSON."""
        columns = [
            {"name": name, "classes": list(classes)} for name, (_, classes) in self.embedded.columns.items()
        ]
        return {
            "count": len(self.embedded.images),
            "columns": columns,
            "layouts": list(self.layouts),
            "waiting": list(self.waiting),
        }

    def names(self) -> list[str]:
        """Return the names of all images."""
        return list(self.embedded.images.names)

    def column(self, at: int) -> bytes:
        """Return the class of each image in a column as int32 bytes; -1: unknown."""
        values, _ = list(self.embedded.columns.values())[at]
        return values.astype("<i4").tobytes()

    def thumbnail(self, row: int) -> bytes:
        """Return the thumbnail of an image as WebP."""
        images = self.embedded.images
        return encode(draw_thumbnail(images.read(np.array([row]))[0], images.pixels, px=THUMB_PX))

    def near(self, row: int) -> list[Json]:
        """Return the images most similar to this one, without itself."""
        directions = self.embedded.directions[row : row + 1]
        return [one for one in self._find(directions, k=NUM_NEAR + 1) if one["row"] != row][:NUM_NEAR]

    def search(self, picture: bytes, *, suffix: str) -> list[Json]:
        """Return the images most similar to a picture, given as the bytes of a file.

        Raises:
            DataError: the picture cannot be read, or has another number of channels or bit depth.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"picture{suffix}"
            path.write_bytes(picture)
            with self._embedding:  # the network reuses buffers, so only one thread may use it
                features = self.encoder.embed(path)
        return self._find(self.embedded.direction_of(features), k=NUM_NEAR)

    def make_slow_maps(self, *, run_dir: Path, seed: int, say: Say) -> None:
        """Compute the slow maps in `waiting` and add them to `layouts`."""
        directions = self.embedded.directions
        maps = place_most_slowly(self.waiting, directions, run_dir=run_dir, seed=seed, say=say)
        try:
            for name, places in maps:
                self.layouts[name] = places
                self.waiting = tuple(other for other in self.waiting if other != name)
        except ByolError as error:
            say(f"there is no {' and no '.join(self.waiting)} map: {error}")
        finally:
            self.waiting = ()  # the page stops asking for maps that failed

    def _find(self, directions: Float32[np.ndarray, "1 feature"], *, k: int) -> list[Json]:
        ((cosines, rows),) = find_nearest(directions, torch.from_numpy(self.embedded.directions), k=k)
        return [
            {"row": row, "similarity": round(cosine, 4)}
            for row, cosine in zip(rows[0].tolist(), cosines[0].tolist(), strict=True)
        ]


# Longer than 60 lines, because half of it is arguments and their description.
def explore(
    run_dir: Path,
    *,
    images: str | None = None,
    labels: Path | None = None,
    metadata: Path | None = None,
    overrides: Sequence[str] = (),
    port: int = 0,
    open_browser: bool = False,
    say: Say,
    progress: Count | None = None,
) -> None:
    """Serve the page until Ctrl-C; `say` receives its address.

    `images`: show these instead of the run's images. `port` 0: use any free port.

    Raises:
        CheckpointError: the folder holds no run, or no encoder yet.
        ConfigError: an override is not valid, or the port is taken.
        DataError: images, labels or metadata cannot be read, or there are fewer than 5 images.
    """
    chosen = [] if labels is None else [write_override("evaluation.labels", str(labels))]
    run = read_summary(run_dir, [*overrides, *chosen])
    config, seed = run.config, run.config.evaluation.seed
    encoder = load(run_dir, device="cpu" if config.trainer.device == "cpu" else "auto")
    packed = open_run_images(config, run_dir, encoder=encoder, source=images, say=say)
    embedded = Embedded.of(
        packed,
        run_dir,
        config=config,
        encoder=encoder,
        source=images,
        metadata=metadata,
        say=say,
        progress=progress,
    )
    pca = to_uint16(place_by_pca(embedded.directions, seed=seed))
    explorer = Explorer(
        run_dir.resolve().name, summarise(run).sentence, encoder, embedded, {"PCA": pca}, list_slow_maps()
    )
    speaking, ended = threading.Lock(), False

    def say_on(line: str) -> None:
        with speaking:
            if not ended:
                say(line)

    with open_server(explorer, port=port) as server:
        make = threading.Thread(
            target=explorer.make_slow_maps,
            kwargs={"run_dir": run_dir, "seed": seed, "say": say_on},
            daemon=True,
        )
        try:
            say(f"{len(embedded.images):,} images at {server.address} (Ctrl-C ends it)")
            make.start()
            if open_browser:
                webbrowser.open(server.address)
            server.serve_forever()
        except KeyboardInterrupt:
            with speaking:  # print nothing about maps after this line
                ended = True
                say("ended")


def open_server(explorer: Explorer, *, port: int = 0) -> "Server":
    """Return a server that is bound to its port but does not answer yet.

    Raises:
        ConfigError: the port is taken or not allowed.
    """
    try:
        return Server(explorer, port=port)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "ports are 0 to 65535"
        raise ConfigError(
            f"--port {port}: cannot be used ({reason}); choose another, or 0 for a free one"
        ) from None


class Server(ThreadingHTTPServer):
    """HTTP server of one explorer; every address needs the token."""

    daemon_threads = True

    def __init__(self, explorer: Explorer, *, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.explorer, self.token = explorer, secrets.token_urlsafe(24)
        self.hosts = {f"{host}:{self.server_port}" for host in ("127.0.0.1", "localhost")}

    @property
    def address(self) -> str:
        """The address of the page, with the token."""
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a browser that closes the connection during an answer; any other error is a bug."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "byol", ""
    timeout = _READ_TIMEOUT_S  # without it, a client that stops sending keeps a thread

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing, because addresses contain the token."""

    def _answer(self, find: Callable[[list[str]], tuple[bytes, str] | None]) -> None:
        _, token, *rest = f"{self.path.partition('?')[0]}/".split("/")
        is_ours = secrets.compare_digest(token.encode(), self.server.token.encode())
        origin = self.headers.get("Origin")
        is_from_here = origin is None or origin.removeprefix("http://") in self.server.hosts
        if not (is_ours and self.headers.get("Host") in self.server.hosts and is_from_here):
            self._send(HTTPStatus.FORBIDDEN, b"forbidden", "text/plain")
            return
        try:
            found = find([unquote(part) for part in rest if part])
        except ByolError as error:
            self._send(HTTPStatus.BAD_REQUEST, json.dumps({"error": str(error)}).encode(), "application/json")
            return
        if found is None:
            self._send(HTTPStatus.NOT_FOUND, b"not found", "text/plain")
        else:
            self._send(HTTPStatus.OK, *found)

    def _get(self, parts: list[str]) -> tuple[bytes, str] | None:
        explorer = self.server.explorer
        match parts:
            case []:
                page = render_page(
                    WEB / "explore.html", {"name": explorer.title, "verdict": explorer.verdict}
                )
                return page, "text/html; charset=utf-8"
            case ["map.json"]:
                return _to_json(explorer.describe())
            case ["names.json"]:
                return _to_json(explorer.names())
            case ["layout", name] if name in explorer.layouts:
                return explorer.layouts[name].astype("<u2").tobytes(), "application/octet-stream"
            case ["column", at] if _is_below(at, len(explorer.embedded.columns)):
                return explorer.column(int(at)), "application/octet-stream"
            case ["thumb", row] if _is_below(row, len(explorer.embedded.images)):
                return explorer.thumbnail(int(row)), "image/webp"
            case ["near", row] if _is_below(row, len(explorer.embedded.images)):
                return _to_json(explorer.near(int(row)))
        return None

    def _post(self, parts: list[str]) -> tuple[bytes, str] | None:
        length = self.headers.get("Content-Length", "")
        if parts != ["search"] or not _is_below(length, _MOST_BYTES + 1):
            self.close_connection = True  # the body is not read
            return None
        suffix = self.headers.get("X-Suffix", "")
        picture = self.rfile.read(int(length))
        return _to_json(
            self.server.explorer.search(picture, suffix=suffix if _SUFFIX.fullmatch(suffix) else "")
        )

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("Cache-Control", "private, max-age=3600" if kind == "image/webp" else "no-store"),
            ("Content-Security-Policy", _PAGE_POLICY),
            ("Referrer-Policy", "no-referrer"),
            ("X-Content-Type-Options", "nosniff"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def _is_below(text: str, limit: int) -> bool:
    """Return whether the text is an integer in 0 .. limit - 1."""
    return re.fullmatch(r"[0-9]{1,12}", text) is not None and int(text) < limit


def _to_json(content: object) -> tuple[bytes, str]:
    return json.dumps(content).encode(), "application/json"

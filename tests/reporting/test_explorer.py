"""The explorer's server: what it answers, and to whom it does not."""

import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

import byol
from byol.base.errors import ConfigError, DataError
from byol.encoder.encoder import load
from byol.reporting import explorer as explorer_module
from byol.reporting.embedding_map import NOWHERE, place_by_pca, to_uint16
from byol.reporting.explorer import Explorer, Server, open_server
from trained import open_embedded, train_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(tmp_path_factory.mktemp("explorer"))


@pytest.fixture(scope="module")
def explorer(run_dir: Path) -> Explorer:
    embedded = open_embedded(run_dir)
    pca = to_uint16(place_by_pca(embedded.directions, seed=0))
    return Explorer("a", "verdict", load(run_dir, device="cpu"), embedded, {"PCA": pca}, ("t-SNE",))


@pytest.fixture(scope="module")
def server(explorer: Explorer) -> Iterator[Server]:
    with open_server(explorer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: Server,
    path: str,
    *,
    token: str | None = None,
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    address = f"/{server.token if token is None else token}{path}"
    connection.request("GET" if body is None else "POST", address, body=body, headers=headers or {})
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def test_it_is_bound_to_this_machine_alone(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.address.startswith("http://127.0.0.1:") and len(server.token) >= 32


@pytest.mark.parametrize("path", ["/", "/map.json", "/names.json", "/thumb/0", "/near/0", "/nothing"])
@pytest.mark.parametrize("token", ["", "x", "..", "ä%00"])
def test_nothing_without_the_token(server: Server, path: str, token: str) -> None:
    assert ask(server, path, token=quote(token)) == (403, b"forbidden")


@pytest.mark.parametrize("host", ["example.com", "127.0.0.1", "127.0.0.1:1", "localhost.example.com:80", ""])
def test_nothing_for_another_host(server: Server, host: str) -> None:
    assert ask(server, "/map.json", headers={"Host": host})[0] == 403


def test_nothing_for_a_page_from_elsewhere(server: Server) -> None:
    for origin, status in (
        ("http://example.com", 403),
        ("null", 403),
        (f"http://localhost:{server.server_port}", 200),
    ):
        assert ask(server, "/map.json", headers={"Origin": origin})[0] == status


@pytest.mark.parametrize(
    "path",
    [
        "/../config.yaml", "/config.yaml", "/thumb/../config.yaml", "/thumb/%2e%2e%2fconfig.yaml",
        "/thumb/-1", "/thumb/36", "/thumb/1e0", "/thumb/٣", "/thumb/0/x", "/layout/UMAP", "/layout/..",
        "/column/9", "/search", "/thumb//etc/passwd",
    ],
)  # fmt: skip
def test_no_address_is_a_path(server: Server, path: str) -> None:
    assert ask(server, quote(path, safe="/%"))[0] == 404


def test_what_it_answers(server: Server, explorer: Explorer) -> None:
    images = explorer.embedded.images
    status, page = ask(server, "/")
    assert status == 200 and b"createMap" in page
    about = json.loads(ask(server, "/map.json")[1])
    assert (about["count"], about["layouts"], about["waiting"]) == (36, ["PCA"], ["t-SNE"])
    assert json.loads(ask(server, "/names.json")[1]) == list(images.names)
    places = np.frombuffer(ask(server, "/layout/PCA")[1], "<u2").reshape(-1, 2)
    assert (places == explorer.layouts["PCA"]).all()
    labels = np.frombuffer(ask(server, "/column/0")[1], "<i4")
    assert (labels == images.labels).all()
    picture = np.asarray(Image.open(io.BytesIO(ask(server, "/thumb/5")[1])).convert("RGB"), np.float32)
    assert abs(picture - images.images[5]).mean() < 25  # WebP of noise
    rows = np.argsort(-explorer.embedded.directions @ explorer.embedded.directions[7])[None, :25]
    near = [one["row"] for one in json.loads(ask(server, "/near/7")[1])]
    assert near == [row for row in rows[0].tolist() if row != 7][:24]


def test_search_by_a_picture_finds_the_picture(server: Server, run_dir: Path, explorer: Explorer) -> None:
    name = "blue/03.png"
    row = list(explorer.embedded.images.names).index(name)
    picture = (run_dir.parent.parent / "images" / name).read_bytes()
    status, answer = ask(server, "/search", body=picture, headers={"X-Suffix": ".png"})
    first = json.loads(answer)[0]
    assert status == 200 and first["row"] == row and first["similarity"] > 0.999


@pytest.mark.parametrize("suffix", [".png", "", "/../../x.png", ".png/x"])
def test_a_search_by_nonsense_is_one_line(server: Server, suffix: str) -> None:
    status, answer = ask(server, "/search", body=b"nonsense", headers={"X-Suffix": suffix})
    assert status == 400 and "\n" not in json.loads(answer)["error"]


def test_a_picture_that_is_too_large_is_not_read(server: Server) -> None:
    assert ask(server, "/search", body=b"", headers={"Content-Length": str(10**9)})[0] == 404


def test_a_client_that_sends_less_than_it_announces_is_disconnected(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explorer_module._Handler, "timeout", 0.2)
    request = (
        f"POST /{server.token}/search HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\n"
        "Content-Length: 1000\r\n\r\nonly this"
    )
    before = threading.active_count()
    for text in (request, request[:30]):  # in its body, and in its first line
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as client:
            client.sendall(text.encode())
            assert client.recv(100) == b""  # the server closed the connection
    end = time.monotonic() + 10.0
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() <= before
    assert ask(server, "/map.json")[0] == 200


def test_slow_maps_come_later_and_place_some(
    explorer: Explorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("byol.reporting.embedding_map.MOST_PLACED", 12)
    explorer.make_slow_maps(run_dir=tmp_path, seed=0, say=lambda line: None)
    placed = (explorer.layouts.pop("t-SNE") != NOWHERE).any(axis=1)
    assert placed.sum() == 12 and explorer.waiting == () and (tmp_path / "map.npz").is_file()
    explorer.waiting = ("t-SNE",)


def test_a_folder_that_cannot_be_written_is_said_once_and_maps_are_shown(
    explorer: Explorer, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    said: list[str] = []
    explorer.waiting = ("t-SNE", "t-SNE")
    explorer.make_slow_maps(run_dir=tmp_path / "file", seed=0, say=said.append)
    assert "t-SNE" in explorer.layouts and explorer.waiting == ()
    assert said[0] == "computing t-SNE of 36 images" and len(said) == 2
    assert said[1].startswith("the map is not cached: ") and "a file is where a folder must be" in said[1]
    del explorer.layouts["t-SNE"]
    explorer.waiting = ("t-SNE",)


def test_a_map_that_cannot_be_made_is_not_waited_for(
    explorer: Explorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise DataError("no")

    monkeypatch.setattr("byol.reporting.embedding_map.place_slowly", refuse)
    said: list[str] = []
    explorer.make_slow_maps(run_dir=tmp_path, seed=0, say=said.append)
    assert (
        said == ["there is no t-SNE map: no"] and explorer.waiting == () and "t-SNE" not in explorer.layouts
    )
    explorer.waiting = ("t-SNE",)


def test_a_port_that_is_taken_or_not_one(explorer: Explorer, server: Server) -> None:
    for port in (server.server_port, 70_000):
        with pytest.raises(ConfigError, match=f"--port {port}: cannot be used"):
            open_server(explorer, port=port)


@pytest.mark.slow
def test_the_command_prints_its_address_and_ends_with_ctrl_c(run_dir: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(byol.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-m", "byol", "explore", str(run_dir)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("36 images at http://127.0.0.1:") and "Ctrl-C" in line
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out.endswith("ended\n") and err == ""

"""A web server on this machine that gives the files of a folder, and misbehaves as a test asks."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Fault = Callable[["Handler", bytes], bool]  # returns whether it has answered


class Server(ThreadingHTTPServer):
    """Counts the requests of each file; `faults` has how often which fault is injected, by ends of paths."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.requests: Counter[str] = Counter()
        self.faults: dict[str, tuple[int, Fault]] = {}
        self.released = threading.Event()
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def inject(self, path: str, fault: Fault, *, times: int = 10**9) -> None:
        self.faults[path] = (times, fault)

    def take(self, path: str) -> Fault | None:
        with self.lock:
            self.requests[path] += 1
            for end, (times, fault) in self.faults.items():
                if path.endswith(end) and times > 0:
                    self.faults[end] = (times - 1, fault)
                    return fault
        return None

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that give up are part of the tests."""


class Handler(SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        fault = self.server.take(self.path)
        if fault is not None:
            path = Path(self.translate_path(self.path))
            if fault(self, path.read_bytes()):
                return
        super().do_GET()

    def start(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *args: object) -> None: ...


def stall_before(handler: Handler, content: bytes) -> bool:
    """No answer."""
    handler.server.released.wait(30)
    return True


def stall_within(handler: Handler, content: bytes) -> bool:
    """Half of the file, then nothing."""
    handler.start(len(content))
    handler.wfile.write(content[: len(content) // 2])
    handler.wfile.flush()
    handler.server.released.wait(30)
    return True


def break_off(handler: Handler, content: bytes) -> bool:
    """Half of the file, then the connection is closed."""
    handler.start(len(content))
    handler.wfile.write(content[: len(content) // 2])
    handler.close_connection = True
    return True


def cut_short(handler: Handler, content: bytes) -> bool:
    """Half of the file, as if that were all."""
    handler.start(len(content) // 2)
    handler.wfile.write(content[: len(content) // 2])
    return True


def answer(code: int) -> Fault:
    """An error of the server."""

    def fault(handler: Handler, content: bytes) -> bool:
        handler.send_error(code)
        return True

    return fault


def wrong_bytes(handler: Handler, content: bytes) -> bool:
    """The right number of bytes, one of which is wrong."""
    handler.start(len(content))
    changed = bytearray(content)
    changed[len(content) // 2] ^= 0xFF
    handler.wfile.write(changed)
    return True


def endless(handler: Handler, content: bytes) -> bool:
    """More and more bytes."""
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(content)
    while not handler.server.released.is_set():
        handler.wfile.write(bytes(1000))
    return True


def slow(handler: Handler, content: bytes) -> bool:
    """All of the file, in pieces."""
    handler.start(len(content))
    for first in range(0, len(content), 1 + len(content) // 10):
        handler.wfile.write(content[first : first + 1 + len(content) // 10])
        time.sleep(0.03)
    return True


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()

"""Fetch files from object storage or a web server, with fsspec: time-outs, retries and checksums."""

import hashlib
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, BinaryIO, TypeVar

from byol.base.errors import CheckpointError, DataError
from byol.base.files import write_atomically
from byol.base.packages import install_command

TIMEOUT_S = 60.0  # longest time without a byte
PAUSES_S = (1.0, 4.0, 15.0)  # before the second, third and fourth attempt
_CHUNK_BYTES = 2**20  # read at once
_BLOCK_BYTES = 2**22  # asked for at once, from a store that is read in ranges
_POLL_S = 0.1  # how often a wait looks whether it should stop
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}

T = TypeVar("T")


class FetchError(DataError):
    """A file cannot be fetched, after all attempts."""


class _AttemptError(Exception):
    """An attempt has failed. `for_good`: another attempt would fail as well."""

    def __init__(self, reason: str, *, for_good: bool = False) -> None:
        super().__init__(reason)
        self.for_good = for_good


class Store:
    """The files below an address such as s3://bucket/folder. Several threads may fetch at once.

    Raises:
        FetchError: the address is of a kind that fsspec does not know, or a package for it is missing.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._stop = Event()
        protocol = self.address.partition("://")[0]
        self._is_web = protocol in ("http", "https")
        try:
            import fsspec

            options = {"client_kwargs": {"timeout": _web_timeout()}} if self._is_web else {}
            self._system, self._root = fsspec.core.url_to_fs(self.address, **options)
        except ImportError:
            package = _PACKAGES.get(protocol, f"for {protocol}:// of fsspec")
            raise FetchError(
                f"{address}: needs the package {package}; install it ({install_command('fsspec', package)})"
                if protocol in _PACKAGES
                else f"{address}: needs the package {package}; install it"
            ) from None
        except ValueError:
            raise FetchError(
                f"{address}: fsspec knows no addresses that begin with {protocol}://; give s3://, gs://, "
                "https:// or file://"
            ) from None

    def read(self, path: str, *, most: int, check: Callable[[bytes], T]) -> T:
        """Return the result of `check` for the content of a small file; a ValueError of it counts as damage.

        Raises:
            FetchError: the file is missing, damaged, longer than `most` bytes, or the store does not answer.
        """

        def attempt() -> T:
            content = bytearray()
            with closing(self._stream(path)) as chunks:
                for chunk in chunks:
                    content += chunk
                    if len(content) > most:
                        raise _AttemptError(f"is longer than {most:,} bytes", for_good=True)
            try:
                return check(bytes(content))
            except ValueError as error:
                raise _AttemptError(f"is damaged ({error})") from None

        return self._try(path, attempt)

    def fetch(self, path: str, target: Path, *, num_bytes: int, blake2b: str) -> None:
        """Write a file to `target`, which is complete and has the right checksum, or absent.

        Raises:
            FetchError: the file is missing or damaged, or the store does not answer.
            DataError: `target` cannot be written.
        """

        def write(file: BinaryIO) -> None:
            digest, done = hashlib.blake2b(digest_size=16), 0
            with closing(self._stream(path)) as chunks:
                for chunk in chunks:
                    file.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    if done > num_bytes:
                        raise _AttemptError(f"has more than the {num_bytes:,} bytes that were packed")
            if done < num_bytes:
                raise _AttemptError(f"broke off after {done:,} of {num_bytes:,} bytes")
            if digest.hexdigest() != blake2b:
                raise _AttemptError("has other bytes than were packed (its checksum differs)")

        try:
            self._try(path, lambda: write_atomically(target, write))
        except CheckpointError as error:
            raise DataError(f"{error}, or set a smaller data.cache_gb") from None

    def stop(self) -> None:
        """Let all calls, also those that run in other threads, end with an error, until `resume`."""
        self._stop.set()

    def resume(self) -> None:
        """Let calls work again after `stop`."""
        self._stop = Event()

    def _try(self, path: str, attempt: Callable[[], T]) -> T:
        stop = self._stop
        for pause in (*PAUSES_S, None):
            try:
                return attempt()
            except _AttemptError as error:
                if error.for_good or pause is None:
                    times = "" if error.for_good else f" (tried {len(PAUSES_S) + 1} times)"
                    raise FetchError(
                        f"{self.address}/{path}: {error}{times}; check the address and the network, then "
                        "repeat the command to continue"
                    ) from None
            if stop.wait(pause):
                break
        raise FetchError(f"{self.address}/{path}: is not needed any more")

    def _stream(self, path: str) -> Generator[bytes, None, None]:
        """Yield the content of a file, read by a thread, which is given up when no byte comes in time."""
        chunks: Queue[bytes | Exception | None] = Queue(4)
        stop, given_up = self._stop, Event()
        Thread(target=self._produce, args=(path, chunks, given_up), daemon=True).start()
        try:
            waited_s = 0.0
            while True:
                try:
                    chunk = chunks.get(timeout=_POLL_S)
                except Empty:
                    waited_s += _POLL_S
                    if stop.is_set():
                        raise _AttemptError("is not needed any more", for_good=True) from None
                    if waited_s >= TIMEOUT_S:
                        raise _AttemptError(f"no byte has come in {TIMEOUT_S:g} s") from None
                    continue
                waited_s = 0.0
                if chunk is None:
                    return
                if isinstance(chunk, Exception):
                    raise _describe(chunk)
                yield chunk
        finally:
            given_up.set()

    def _produce(self, path: str, chunks: "Queue[bytes | Exception | None]", given_up: Event) -> None:
        # One request for a file of a web server (`size` keeps fsspec from asking before), ranges of others.
        how: dict[str, Any] = {"block_size": 0, "size": 1} if self._is_web else {"block_size": _BLOCK_BYTES}
        last: Exception | None = None
        try:
            with self._system.open(f"{self._root}/{path}", "rb", **how) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    if not _put(chunks, chunk, given_up):
                        return
        except Exception as error:  # the libraries below fsspec raise errors of their own
            last = error
        _put(chunks, last, given_up)


def _put(chunks: "Queue[bytes | Exception | None]", item: bytes | Exception | None, given_up: Event) -> bool:
    """Hand over an item; return False if nobody takes it any more."""
    while not given_up.is_set():
        try:
            chunks.put(item, timeout=_POLL_S)
            return True
        except Full:
            continue
    return False


def _describe(error: Exception) -> _AttemptError:
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return _AttemptError("there is no such file", for_good=True)
    status = getattr(error, "status", None)
    if isinstance(error, PermissionError) or status in (401, 403):
        return _AttemptError("the store denies access", for_good=True)
    if isinstance(status, int):
        return _AttemptError(f"the server answers {status}")
    reason = (str(error).splitlines() or [""])[0][:200]
    return _AttemptError(f"cannot be fetched ({type(error).__name__}{': ' if reason else ''}{reason})")


def _web_timeout() -> Any:
    import aiohttp

    return aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_S, sock_read=TIMEOUT_S)

"""Where spill files go: a directory of this machine, or one of any file system that fsspec knows.

A place belongs to one raylet and is removed as a whole with it: by the raylet, or by its zygote where
the raylet was killed. Files are written once, from begin to end, and read at any offset. Any thread,
several at a time. Every failure leaves as an OSError that names the file: other file systems raise what
they like, and whoever spills has to tell a disk that fails from an error of ours.

A local directory is private to this user, and is not filled to the last byte. `file://` is one as well.
Whatever has another scheme (s3://…, gs://…, memory://…) is fsspec's, imported at the first file: its
credentials, its memory and its limits are that file system's business.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any, Protocol

from miniray.runtime import session_lock, sessions
from miniray.runtime.state_directory import make_private

DISK_FULL_SHARE = 0.95
"""Nothing is written to a disk that is fuller than this."""
PIECE_BYTES = 4 << 20
"""Other file systems are given and asked for so much at a time."""
LOCAL_SCHEMES = ("file://", "local://")


class Place(Protocol):
    """See the module head."""

    def make(self, needed: int) -> None:
        """Make the directory; OSError when `needed` bytes do not fit."""

    def create(self, name: str) -> Any:
        """A new binary file, open for writing."""

    def open(self, name: str) -> Any:
        """A binary file, open for reading, that can seek."""

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""

    def remove_all(self) -> None:
        """Delete the directory, as far as that is possible."""

    def path(self, name: str) -> str:
        """The file's name for people."""

    def errors_of(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Whatever fails in this block with a file leaves as an OSError that names it."""


def place_of(directory: str) -> Place:
    """The place for a path or a URL. OSError when no file system can be had for it."""
    directory = _without_local_scheme(directory)
    return UrlPlace(directory) if "://" in directory else LocalPlace(directory)


def below(chosen: str, name: str) -> str:
    """What is one raylet's own below the path or URL that somebody chose for all."""
    chosen = _without_local_scheme(chosen)
    if "://" not in chosen:
        return os.path.join(chosen, name)
    return f"{chosen}{'' if chosen.endswith('/') else '/'}{name}-{os.urandom(8).hex()}"


def remove_within(url: str, limit_s: int) -> None:
    """Delete the place at a URL; this process ends if that takes longer. For a process about to end."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(limit_s)
    with contextlib.suppress(OSError):
        place_of(url).remove_all()
    signal.alarm(0)


def _without_local_scheme(chosen: str) -> str:
    for scheme in LOCAL_SCHEMES:
        if chosen.startswith(scheme):
            return os.path.abspath(chosen[len(scheme) :])
    return chosen


class LocalPlace:
    """A directory of this machine."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def make(self, needed: int) -> None:
        """See `Place`."""
        make_private(self._directory)
        if not sessions.is_private(self._directory):  # its name can be foreseen
            raise OSError(f"somebody else has made {self._directory}, and could change what is spilled there")
        import shutil

        usage = shutil.disk_usage(self._directory)
        if usage.used + needed > DISK_FULL_SHARE * usage.total:
            raise OSError(f"the disk of {self._directory} is {100 * usage.used / usage.total:.0f} % full "
                          f"({usage.free >> 20} MiB free, {needed >> 20} MiB to write)")

    def create(self, name: str) -> Any:
        """See `Place`."""
        return open(os.open(self.path(name), os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "wb", buffering=0)

    def open(self, name: str) -> Any:
        """See `Place`."""
        return open(self.path(name), "rb", buffering=0)

    def remove(self, name: str) -> None:
        """See `Place`."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path(name))

    def remove_all(self) -> None:
        """See `Place`."""
        session_lock.remove(self._directory)

    def path(self, name: str) -> str:
        """See `Place`."""
        return os.path.join(self._directory, name)

    def errors_of(self, name: str) -> contextlib.AbstractContextManager[None]:
        """See `Place`."""
        return _named_errors(self.path(name))


class UrlPlace:
    """A directory of some other file system."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError:
            raise OSError(f"spilling to {url} needs the package fsspec: pip install fsspec") from None
        self._url = url
        with _named_errors(url):
            self._system, self._path = fsspec.core.url_to_fs(url)

    def make(self, needed: int) -> None:
        """See `Place`; nobody can ask such a file system how much room it has."""
        with _named_errors(self._url):
            self._system.makedirs(self._path, exist_ok=True)

    def create(self, name: str) -> Any:
        """See `Place`."""
        with self.errors_of(name):
            return _ForeignFile(self._system.open(f"{self._path}/{name}", "wb"))

    def open(self, name: str) -> Any:
        """See `Place`."""
        with self.errors_of(name):
            return _ForeignFile(self._system.open(f"{self._path}/{name}", "rb"))

    def remove(self, name: str) -> None:
        """See `Place`."""
        with self.errors_of(name), contextlib.suppress(FileNotFoundError):
            self._system.rm(f"{self._path}/{name}")

    def remove_all(self) -> None:
        """See `Place`."""
        with contextlib.suppress(OSError), _named_errors(self._url):
            self._system.rm(self._path, recursive=True)

    def path(self, name: str) -> str:
        """See `Place`."""
        return f"{self._url}/{name}"

    def errors_of(self, name: str) -> contextlib.AbstractContextManager[None]:
        """See `Place`."""
        return _named_errors(self.path(name))


class _ForeignFile:
    """A file of code that is not ours. It never gets hold of the store's memory: a view that is kept,
    in an error's traceback say, would pin that for good.
    """

    def __init__(self, file: Any) -> None:
        self._file = file

    def __enter__(self) -> _ForeignFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def seek(self, offset: int) -> None:
        self._file.seek(offset)

    def readinto(self, target: memoryview) -> int:
        data = self._file.read(min(len(target), PIECE_BYTES))
        target[: len(data)] = data
        return len(data)

    def write(self, data: bytes | memoryview) -> int:
        piece = bytes(data[:PIECE_BYTES])
        taken = self._file.write(piece)
        return len(piece) if taken is None else int(taken)


@contextlib.contextmanager
def _named_errors(path: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and path in str(error):
            raise
        words = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise OSError(f"{path}: {words}") from error

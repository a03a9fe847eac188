"""Making one runtime environment, in a process of its own below the zygote: `main`.

It unpacks packages, fetches archives from elsewhere and runs installers, so that no daemon does.
What it makes is named by content and shared: `packages/<name>` for unpacked archives,
`venvs/<sha>` for virtual environments. Unpacking goes into a directory beside and is renamed, a
virtual environment is made under a file lock, and both are used only when they are whole. The
result is JSON (`Result`) in the file that the request names; what went wrong is in its `problem`.

Archives are not trusted. Refused are names that lead out of the directory, links and special files,
more than `UNPACKED_LIMIT` bytes, `ENTRY_LIMIT` entries or `PARTS_LIMIT` directories and files, and a small
archive that becomes a large tree; all of it before anything is written, by what the archive says of
itself, and an entry that is bigger than it said ends the unpacking.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import lzma
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import traceback
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from miniray.core.environments import Result

UNPACKED_LIMIT = 4 << 30
ENTRY_LIMIT = 200_000
PARTS_LIMIT = 1_000_000
"""Names on the paths of all entries together: each may become a directory."""
DIRECTORY_LIMIT = 64 << 20
"""Bytes of an archive's table of contents, which is held in memory."""
RATIO_LIMIT, RATIO_FREE = 200, 256 << 20
"""Unpacked bytes for each packed one, looked at where there are more than RATIO_FREE."""
TAIL_LINES = 20
OURS = re.compile(r"gcs://(_ray_pkg_[0-9a-f]+\.(?:zip|whl))")
"""Packages of the job, named by their content."""
_PIECE = 1 << 20


class Problem(Exception):
    """Why the environment cannot be made; its text is for people."""


def main(request: dict[str, Any]) -> int:
    """Make the environment of `request`; returns the exit status.

    `request`: "fields" of the environment, "root" for what is made, "archives" (URI -> fetched
    file) and "result", the file to write.
    """
    result = Result()
    try:
        Setup(request, result).run()
    except Problem as problem:
        result.problem = str(problem)
    except Exception as error:
        traceback.print_exc()
        result.problem = f"{type(error).__name__}: {error}"
    whole = request["result"] + ".part"
    Path(whole).write_text(json.dumps(asdict(result)))
    os.rename(whole, request["result"])
    return 1 if result.problem else 0


class Setup:
    """One making."""

    def __init__(self, request: dict[str, Any], result: Result) -> None:
        self._fields = request["fields"]
        self._root = Path(request["root"])
        self._archives: dict[str, str] = request["archives"]
        self._result = result

    def run(self) -> None:
        """Everything, in the order in which it is cheap to fail."""
        for name in ("conda", "container", "image_uri"):
            if self._fields.get(name):
                raise Problem(f"'{name}' is not supported: use 'pip', 'uv' or 'py_executable'")
        directory = self._fields.get("working_dir")
        if directory:
            self._result.cwd = str(self._unpacked(directory))
            self._result.path.append(self._result.cwd)
        for module in self._fields.get("py_modules") or ():
            self._result.path.append(str(self._unpacked(module)))
        for tool in ("pip", "uv"):
            if self._fields.get(tool):
                self._result.python = self._installed(tool, self._fields[tool])

    # ---- archives ----

    def _unpacked(self, uri: str) -> Path:
        named = OURS.fullmatch(uri)
        ours = named is not None
        name = named[1] if named is not None else hashlib.sha256(uri.encode()).hexdigest()[:40]
        target = self._root / "packages" / name
        if not target.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as beside:
                archive = self._archives.get(uri) or _downloaded(uri, Path(beside) / "archive")
                unpacked = Path(beside) / "unpacked"
                unpack(Path(archive), unpacked)
                _put_in_place(unpacked if ours else _without_single_top(unpacked), target)
        self._result.made[str(target)] = tree_bytes(target)
        return target

    # ---- installers ----

    def _installed(self, tool: str, wanted: dict[str, Any]) -> str:
        """The interpreter of a virtual environment with these packages."""
        identity = json.dumps([tool, wanted, sys.version, sys.prefix], sort_keys=True)
        target = self._root / "venvs" / hashlib.sha256(identity.encode()).hexdigest()[:40]
        target.parent.mkdir(parents=True, exist_ok=True)
        python = target / "bin" / "python"
        whole = target / "whole"
        with locked(target.with_suffix(".lock")):
            if not whole.exists():
                shutil.rmtree(target, ignore_errors=True)
                try:
                    make_venv(target)
                    self._install(tool, wanted, str(python))
                except BaseException:
                    shutil.rmtree(target, ignore_errors=True)
                    raise
                whole.touch()
        self._result.made[str(target)] = tree_bytes(target)
        return str(python)

    def _install(self, tool: str, wanted: dict[str, Any], python: str) -> None:
        base = [sys.executable, "-m", "pip", "--python", python]
        if tool == "uv":
            run([*base, "install", "--disable-pip-version-check", "uv" + wanted["version"]])
            base = [python, "-m", "uv", "pip"]
            target = ["--python", python]
        else:
            target = []
            if wanted["version"]:
                run([*base, "install", "--disable-pip-version-check", "pip" + wanted["version"]])
                base = [python, "-m", "pip"]
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("\n".join(wanted["packages"]) + "\n")
            file.flush()
            run([*base, "install", *target, *wanted["options"], "-r", file.name])
        if wanted["check"]:
            run([*base, "check", *target])


def make_venv(target: Path) -> None:
    """A virtual environment that also sees what this interpreter sees, behind its own packages."""
    run([sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", str(target)])
    parents = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    [own] = target.glob("lib/python*/site-packages")
    lines = [f"import site; site.addsitedir({path!r})" for path in parents]
    (own / "_parent.pth").write_text("\n".join(lines) + "\n")


def run(command: list[str]) -> None:
    """Run a tool; Problem with its last lines when it fails."""
    print("+", " ".join(command), flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout, flush=True)
    if done.returncode:
        tail = "\n".join(done.stdout.strip().splitlines()[-TAIL_LINES:])
        raise Problem(f"{' '.join(command)} ended with exit status {done.returncode}:\n{tail}")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else on this machine is in here for the same path."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def unpack(archive: Path, target: Path) -> None:
    """Unpack a zip or wheel below `target`. Problem for anything that is not a plain file inside it."""
    if not archive.is_file():
        raise Problem(f"{archive} is not a file")
    target.mkdir()
    try:
        _check_directory(archive)
        with zipfile.ZipFile(archive) as source:
            entries = source.infolist()
            _check_entries(entries, archive.stat().st_size)
            for entry in entries:
                _unpack_entry(source, entry, target)
    except zipfile.BadZipFile as error:
        raise Problem(f"not a zip archive: {error}") from None
    except (OSError, ValueError, NotImplementedError, RuntimeError, EOFError, zlib.error, lzma.LZMAError,
            struct.error) as error:  # fmt: skip
        raise Problem(f"the archive cannot be unpacked: {type(error).__name__}: {error}") from None


def _check_directory(archive: Path) -> None:
    """Refuse a table of contents that would fill the memory; `zipfile` reads all of it at once."""
    with open(archive, "rb") as file:
        found = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    size = found[zipfile._ECD_SIZE] if found else 0  # type: ignore[attr-defined]
    if size > DIRECTORY_LIMIT:
        raise Problem(f"the archive's table of contents has {size} bytes, at most {DIRECTORY_LIMIT} are read")


def _check_entries(entries: list[zipfile.ZipInfo], packed: int) -> None:
    """Refuse what is too much, or not a plain file inside the directory, before anything is written."""
    total = sum(entry.file_size for entry in entries)
    if total > UNPACKED_LIMIT or len(entries) > ENTRY_LIMIT:
        raise Problem(f"the archive has {len(entries)} entries and {total >> 20} MiB, at most "
                      f"{ENTRY_LIMIT} and {UNPACKED_LIMIT >> 20} MiB are unpacked")
    if total > RATIO_FREE and total > packed * RATIO_LIMIT:
        raise Problem(f"the archive's {packed} bytes become {total >> 20} MiB, more than {RATIO_LIMIT} for "
                      f"one, like a bomb's; up to {RATIO_FREE >> 20} MiB are unpacked in any case")
    if sum(entry.filename.count("/") for entry in entries) > PARTS_LIMIT:
        raise Problem(f"the archive's paths have more than {PARTS_LIMIT} parts")
    for entry in entries:
        _check_entry(entry)


def _check_entry(entry: zipfile.ZipInfo) -> None:
    parts = Path(entry.filename).parts
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if os.path.isabs(entry.filename) or ".." in parts or "\\" in entry.filename:
        raise Problem(f"the archive's entry {entry.filename!r} leads out of its directory")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise Problem(f"the archive's entry {entry.filename!r} is a link or a special file")


def _unpack_entry(source: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    parts = Path(entry.filename).parts
    mode = entry.external_attr >> 16
    path = target.joinpath(*parts)
    if entry.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    left = entry.file_size
    with source.open(entry) as packed, open(path, "xb") as out:
        while piece := packed.read(min(_PIECE, left + 1)):
            left -= len(piece)
            if left < 0:
                raise Problem(f"the archive's entry {entry.filename!r} is bigger than it says")
            out.write(piece)
    path.chmod(0o755 if mode & stat.S_IXUSR else 0o644)


def _put_in_place(made: Path, target: Path) -> None:
    try:
        os.rename(made, target)
    except OSError:
        if not target.is_dir():  # else somebody else has made the same meanwhile
            raise


def _without_single_top(directory: Path) -> Path:
    """Archives of repositories hold one directory, which is meant."""
    inside = list(directory.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else directory


def _downloaded(uri: str, target: Path) -> str:
    """Fetch an archive from outside of the cluster."""
    scheme, _, rest = uri.partition("://")
    try:
        if scheme == "file":
            return "/" + rest.lstrip("/")
        if scheme in ("http", "https"):
            from urllib.request import urlopen

            with urlopen(uri, timeout=60) as source:
                return _saved(source, target)
        import fsspec  # type: ignore[import-not-found, unused-ignore]

        with fsspec.open(uri, "rb") as source:
            return _saved(source, target)
    except ImportError as error:
        raise Problem(f"{uri} cannot be fetched: {error} (install fsspec and the scheme's package)") from None
    except (OSError, ValueError) as error:
        raise Problem(f"{uri} cannot be fetched: {error}") from None


def _saved(source: Any, target: Path) -> str:
    with open(target, "wb") as out:
        while piece := source.read(_PIECE):
            out.write(piece)
            if out.tell() > UNPACKED_LIMIT:
                raise Problem(f"the archive is bigger than {UNPACKED_LIMIT >> 20} MiB")
    return str(target)


def tree_bytes(directory: Path) -> int:
    """Bytes of the files below a directory."""
    total = 0
    for where, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_size
            except OSError:
                pass
    return total

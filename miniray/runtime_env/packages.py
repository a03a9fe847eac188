"""Local directories, modules and archives of a runtime environment as packages named by content.

::

    {"working_dir": "./job"} ─▶ files, without what is left out ─▶ sha256 ─▶ gcs://_ray_pkg_<sha>.zip
                                                                              └▶ Package: written when
                                                                                 it is uploaded

Left out are what `excludes` names, what the directory's .gitignore and .rayignore files name, and
`DEFAULT_EXCLUDES`. Symbolic links are followed (a directory once per way to it), and what is
neither file nor directory is skipped. Limit: `PACKAGE_LIMIT` bytes per package.
"""

from __future__ import annotations

import hashlib
import os
import stat
import types
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from miniray.runtime_env.patterns import Patterns

DEFAULT_EXCLUDES = (".git", ".venv", "venv", "__pycache__")
DEFAULT_EXCLUDES_VARIABLE = "RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES"
IGNORE_FILES = (".gitignore", ".rayignore")
PACKAGE_LIMIT = 500 << 20
READY_MADE = (".zip", ".whl")
SCHEME = "gcs"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_PIECE = 1 << 20


@dataclass
class Package:
    """What is to be uploaded under `uri`: (name inside, path) pairs, an archive as it is, or bytes."""

    uri: str
    files: list[tuple[str, str]] = field(default_factory=list)
    archive: str = ""
    data: bytes = b""

    def write(self, target: BinaryIO) -> None:
        """The bytes to be uploaded."""
        if self.data:
            target.write(self.data)
            return
        if self.archive:
            with open(self.archive, "rb") as source:
                while piece := source.read(_PIECE):
                    target.write(piece)
            return
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, path in self.files:
                entry = zipfile.ZipInfo(name, _EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = _mode(path) << 16
                with open(path, "rb") as source, archive.open(entry, "w", force_zip64=True) as out:
                    while piece := source.read(_PIECE):
                        out.write(piece)


def is_uri(text: str) -> bool:
    """Whether `text` is SCHEME://… instead of a path."""
    return "://" in text


def localized(env: Mapping[str, Any]) -> tuple[dict[str, Any], list[Package]]:
    """The environment with URIs in place of local paths, and the packages behind them.

    ValueError names a path that is not there, of the wrong kind, or too big.
    """
    out, packages = dict(env), []
    excludes = list(env.get("excludes") or ())
    directory = env.get("working_dir")
    if directory is not None and not is_uri(str(directory)):
        package = _package(os.fspath(directory), excludes, "working_dir", named=False)
        packages.append(package)
        out["working_dir"] = package.uri
    modules = []
    for module in env.get("py_modules") or ():
        if isinstance(module, str) and is_uri(module):
            modules.append(module)
            continue
        package = _package(_module_path(module), excludes, "py_modules", named=True)
        packages.append(package)
        modules.append(package.uri)
    if modules:
        out["py_modules"] = modules
    out.pop("excludes", None)
    hook = env.get("worker_process_setup_hook")
    if callable(hook):
        package = _pickled(hook)
        packages.append(package)
        out["worker_process_setup_hook"] = package.uri
    return out, packages


def _pickled(hook: Any) -> Package:
    """RuntimeEnvSetupError when it cannot be pickled."""
    from miniray.exceptions import RuntimeEnvSetupError
    from miniray.runtime import values

    try:
        data = values.serialize_function(hook, "the setup hook")
    except (TypeError, ValueError) as error:
        raise RuntimeEnvSetupError(f"Failed to export the setup function.\n{error}") from error
    return Package(_uri(hashlib.sha256(data).hexdigest()[:40], ".hook"), data=data)


def _module_path(module: Any) -> str:
    if isinstance(module, types.ModuleType):
        places = list(getattr(module, "__path__", ()) or ())
        found = places[0] if places else getattr(module, "__file__", None)
        if found is None:
            raise ValueError(f"py_modules: the module {module.__name__!r} has no file")
        return str(found)
    return str(os.fspath(module))


def _package(path: str, excludes: list[str], what: str, *, named: bool) -> Package:
    """`named`: keep the directory's own name in the archive, so that it can be imported."""
    where = Path(path).expanduser().resolve()
    if where.is_file() and where.suffix in READY_MADE:
        return Package(_uri(_digest_of_file(where), where.suffix), archive=str(where))
    if where.is_file() and named and where.suffix == ".py":
        files = [(where.name, str(where))]
    elif where.is_dir():
        top = f"{where.name}/" if named else ""
        files = [(top + name, str(where / name)) for name in collect(where, excludes)]
    else:
        kinds = "a directory, a .py file, a .zip or a .whl file" if named else "a directory or a .zip file"
        raise ValueError(f"{what}: {path!r} is not {kinds} (looked at {where})")
    _check_size(files, what, path)
    return Package(_uri(_digest_of_files(files), ".zip"), files=files)


def _uri(digest: str, suffix: str) -> str:
    return f"{SCHEME}://_ray_pkg_{digest}{suffix}"


def collect(directory: Path, excludes: list[str]) -> list[str]:
    """The files below a directory that are not left out: relative names with slashes, sorted."""
    default = os.environ.get(DEFAULT_EXCLUDES_VARIABLE)
    patterns = DEFAULT_EXCLUDES if default is None else [x for x in default.split(",") if x]
    named = Patterns([*patterns, *excludes])
    return sorted(_walk(directory, "", named, [], (os.path.realpath(directory),)))


def _walk(directory: Path, below: str, named: Patterns, ignores: list[tuple[str, Patterns]],
          way: tuple[str, ...]) -> Iterator[str]:
    """`ignores`: the ignore files of the directories on the way, outermost first; `way`: their real paths."""
    lines = [line for name in IGNORE_FILES for line in _lines(directory / name)]
    if lines:
        ignores = [*ignores, (below, Patterns(lines))]
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        name = below + entry.name
        is_directory = entry.is_dir()
        if named.leaves_out(name, is_directory) or _ignored(name, is_directory, ignores):
            continue
        if is_directory:
            real = os.path.realpath(entry.path)
            if real not in way:
                yield from _walk(Path(entry.path), name + "/", named, ignores, (*way, real))
        elif entry.is_file():
            yield name


def _ignored(name: str, is_directory: bool, ignores: list[tuple[str, Patterns]]) -> bool:
    for below, patterns in reversed(ignores):
        answer = patterns.leaves_out(name[len(below):], is_directory)
        if answer is not None:
            return answer
    return False


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _check_size(files: list[tuple[str, str]], what: str, path: str) -> None:
    sizes = {name: os.path.getsize(file) for name, file in files}
    total = sum(sizes.values())
    if total > PACKAGE_LIMIT:
        biggest = ", ".join(f"{name} ({sizes[name] >> 20} MiB)"
                            for name in sorted(sizes, key=lambda name: -sizes[name])[:3])
        raise ValueError(
            f"{what}: {path!r} has {total >> 20} MiB, more than the {PACKAGE_LIMIT >> 20} MiB that a package "
            f"may have; the biggest files are {biggest}. Name what is not needed in 'excludes'."
        )


def _mode(path: str) -> int:
    """Permissions that travel: whether a file can be executed, nothing else."""
    executable = os.stat(path).st_mode & stat.S_IXUSR
    return stat.S_IFREG | (0o755 if executable else 0o644)


def _digest_of_files(files: list[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(f"{len(name.encode())}:{name}:{_mode(path):o}:{os.path.getsize(path)}:".encode())
        _add_content(digest, path)
    return digest.hexdigest()[:40]


def _digest_of_file(path: Path) -> str:
    digest = hashlib.sha256(path.name.encode())
    _add_content(digest, str(path))
    return digest.hexdigest()[:40]


def _add_content(digest: Any, path: str) -> None:
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)

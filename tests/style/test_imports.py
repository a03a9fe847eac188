"""Imports go down only, and each outside library has one door.

    cli, commands, libraries -> util -> api, remote -> runtime -> core -> protos

The rule is about what a module needs to exist. Inside a function a face of the API may ask a
module above it (an ObjectRef asks for the current worker); `core` may not even do that.

`core` is pure: no clock, no I/O, no environment, no randomness of its own.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "miniray"

LAYERS = [
    ("_proto", "_native"),
    ("core",),
    ("config", "exceptions", "task_error", "ids"),
    ("runtime",),
    ("the public API: every module that is named nowhere else",),
    ("tune", "train", "serve"),
    ("cli", "commands", "web", "dashboard", "__main__"),
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
PUBLIC = 4

IMPURE = {
    "asyncio", "threading", "multiprocessing", "concurrent", "socket", "select", "selectors", "subprocess",
    "signal", "os", "sys", "io", "pathlib", "shutil", "tempfile", "time", "datetime", "secrets", "uuid",
    "logging", "sqlite3", "grpc", "psutil", "ctypes", "mmap",
}  # fmt: skip

DOORS = {
    "grpc": {"runtime/rpc.py"},
    "sqlite3": {"runtime/sqlite_storage.py"},
    "redis": {"runtime/redis_storage.py"},
    "uvicorn": {"web/server.py"},
    "starlette": {"web/api.py"},
    "cryptography": {"runtime/certificates.py"},
}


def modules() -> list[Path]:
    return [p for p in sorted(PACKAGE.rglob("*.py")) if "_pb2" not in p.name]


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """(absolute module name, line, needed to load the module) of every import in a file."""
    package = ["miniray", *path.relative_to(PACKAGE).parts[:-1]]
    tree = ast.parse(path.read_text())
    later = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) not in later
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno, id(node) not in later


def rank(module: str) -> int:
    """The layer of "miniray.core.ids" is that of `core`; other packages stand below all."""
    names = module.split(".")
    if names[0] != "miniray":
        return -1
    return RANK.get(names[1], PUBLIC) if len(names) > 1 else PUBLIC


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    own = rank(".".join(["miniray", *parts]))
    wrong = [
        f"line {line}: {name}"
        for name, line, at_load in imports(path)
        if (at_load or parts[0] == "core") and rank(name) > own
    ]
    assert not wrong, f"imports from above: {wrong}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").rglob("*.py")), ids=lambda p: p.name)
def test_core_is_pure(path: Path) -> None:
    wrong = [f"line {line}: {name}" for name, line, _ in imports(path) if name.split(".")[0] in IMPURE]
    tree = ast.parse(path.read_text())
    wrong += [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "random"
        and node.attr != "Random"
    ]
    assert not wrong, f"a machine decides, a shell acts: {wrong}"


@pytest.mark.parametrize("library", DOORS)
def test_a_library_has_one_door(library: str) -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in modules()
        if str(path.relative_to(PACKAGE)) not in DOORS[library]
        for name, line, _ in imports(path)
        if name.split(".")[0] == library
    ]
    assert not wrong, f"{library} is imported outside of {sorted(DOORS[library])}: {wrong}"


def test_the_roots_do_not_know_one_another() -> None:
    roots = {"gcs", "raylet", "worker"}
    for root in roots:
        path = PACKAGE / "runtime" / f"{root}.py"
        others = {f"miniray.runtime.{other}" for other in roots - {root}}
        wrong = [
            name for name, _, _ in imports(path)
            if any(name == other or name.startswith(other + ".") for other in others)
        ]  # fmt: skip
        assert not wrong, f"{root} imports {wrong}: GCS, raylet and worker speak protos"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("miniray.runtime.worker", ("grpc", "sqlite3", "torch", "ssl", "cryptography")),
        ("miniray", ("grpc", "sqlite3", "torch")),
        ("miniray.cli", ("grpc", "numpy", "google.protobuf", "ssl", "cryptography")),
    ],
)
def test_what_a_process_does_not_load(module: str, unwanted: tuple[str, ...]) -> None:
    """Workers fork from a process without gRPC; the command line answers at once."""
    code = f"import sys, {module}; print([name for name in {unwanted!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_init_starts_its_daemon_before_anything_is_loaded() -> None:
    """What `session` needs until the daemon's interpreter runs adds to the start of every session."""
    unwanted = ("typing", "json", "logging", "re", "dataclasses", "threading", "subprocess", "miniray.api")
    code = f"import sys, miniray.session; print([name for name in {unwanted!r} if name in sys.modules])"
    command = [sys.executable, "-S", "-c", code]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"

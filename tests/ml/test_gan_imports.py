"""Which modules may know the engine, torch and torchvision: the pure parts know none of them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).resolve().parents[2] / "ml").rglob("*.py"))


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_only_the_public_api_of_the_engine_is_used(path: Path) -> None:
    engine = {name for name in imported(path) if name.split(".")[0] == "miniray"}
    allowed = {"miniray", "miniray.exceptions"}
    assert {name for name in engine if not name.startswith("miniray.train")} <= allowed


@pytest.mark.parametrize(
    "name", ["streams", "schedule", "config", "options", "machine", "data", "readers"]
)
def test_pure_parts_know_neither_torch_nor_the_engine(name: str) -> None:
    [path] = [path for path in FILES if path.stem == name]
    assert not {full.split(".")[0] for full in imported(path)} & {"torch", "miniray"}


def test_torchvision_has_one_door() -> None:
    using = {path.stem for path in FILES if any(name.startswith("torchvision") for name in imported(path))}
    assert using <= {"data", "readers"}  # for its data sets, after `vision` has opened the door

"""The tree stays readable: sizes, module heads, and words that belong to no public repository."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILE_LINES = 650
"""The bound. Most files have 100 to 400 lines, and one that grows past that is looked at for a cut."""
FUNCTION_LINES = 60
"""Of the body: a signature with many options, and what the docstring says of them, are no logic."""
HEAD_LINES = 25
NATIVE_FILE_LINES = 750


def python_files() -> list[Path]:
    return [
        path
        for package in ("miniray", "ml", "cluster")
        for path in sorted((ROOT / package).rglob("*.py"))
        if "_pb2" not in path.name and "node_modules" not in path.parts
    ]


def text_files() -> list[Path]:
    """Every text file of the checkout: tracked, or new and not ignored."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    suffixes = {".py", ".cc", ".h", ".md", ".toml", ".txt", ".proto", ".yaml", ".service", ".sh", ""}
    paths = [ROOT / line for line in listing.stdout.splitlines()]
    return [path for path in paths if path.is_file() and path.suffix in suffixes and path.name != "LICENSE"]


def test_files_have_one_subject() -> None:
    long = {str(p.relative_to(ROOT)): n for p in python_files() if (n := _lines(p)) > FILE_LINES}
    assert not long, f"more than {FILE_LINES} lines: {long}"


def test_native_files_have_one_subject() -> None:
    sources = [*(ROOT / "native").rglob("*.cc"), *(ROOT / "native").rglob("*.h")]
    long = {str(p.relative_to(ROOT)): n for p in sources if (n := _lines(p)) > NATIVE_FILE_LINES}
    assert not long, f"more than {NATIVE_FILE_LINES} lines: {long}"


def test_functions_fit_a_screen() -> None:
    long = {}
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
                lines = (node.end_lineno or node.lineno) - body[0].lineno + 1
                if lines > FUNCTION_LINES:
                    long[f"{path.relative_to(ROOT)}:{node.name}"] = lines
    assert not long, f"more than {FUNCTION_LINES} lines: {long}"


def test_each_file_says_what_it_is_for() -> None:
    silent, wordy = [], []
    for path in python_files():
        text = path.read_text()
        if not text.strip():
            continue
        head = ast.get_docstring(ast.parse(text), clean=False)
        if not head:
            silent.append(str(path.relative_to(ROOT)))
        elif head.count("\n") + 1 > HEAD_LINES:
            wordy.append(str(path.relative_to(ROOT)))
    assert not silent, f"no module docstring: {silent}"
    assert not wordy, f"module docstring of more than {HEAD_LINES} lines: {wordy}"


def test_no_notes_to_self() -> None:
    pattern = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b|\b[Pp]hase \d|(?:issue|PR) #\d+")
    found = _matches(pattern)
    assert not found, "unfinished work and ticket numbers belong elsewhere:\n" + "\n".join(found)


def test_no_path_of_a_developers_machine() -> None:
    pattern = re.compile(r"(?<![\w.~}-])/(?:home|root|Users|work)/\w")
    found = _matches(pattern)
    assert not found, "absolute paths of somebody's machine:\n" + "\n".join(found)


def test_documents_that_are_named_exist() -> None:
    names = {path.name for path in text_files()} | {"README.md"}
    found = _matches(re.compile(r"\b[\w-]+\.md\b"), lambda match: match not in names)
    assert not found, "documents that are not in the tree:\n" + "\n".join(found)


def _lines(path: Path) -> int:
    return path.read_text().count("\n")


def _matches(pattern: re.Pattern[str], wanted=lambda match: True) -> list[str]:
    here = Path(__file__)
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in text_files()
        if path != here
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        for match in pattern.findall(line)
        if wanted(match)
    ]

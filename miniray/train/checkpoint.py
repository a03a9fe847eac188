"""Checkpoint: a directory of files that a run can start again from.

A checkpoint is reported by giving a directory (`from_directory`) or tensors (`from_tensors`) to
`train.report`; what a loop or a Result hands out lies in the run's folder and stays as it is.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

METADATA = ".metadata.json"
TENSORS = "model.safetensors"


class Checkpoint:
    """A directory of files. `path` is where it lies."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(Path(path).absolute())

    @classmethod
    def from_directory(cls, path: str | Path) -> Checkpoint:
        """A checkpoint of what lies in a directory now. Raises FileNotFoundError if there is none."""
        if not Path(path).is_dir():
            raise FileNotFoundError(f"a checkpoint is a directory, and {path} is none")
        return cls(path)

    def to_directory(self, path: str | Path | None = None) -> str:
        """Copy the files to `path` (default: a new temporary directory); returns where they are."""
        target = Path(path) if path is not None else Path(tempfile.mkdtemp(prefix="checkpoint-"))
        shutil.copytree(self.path, target, dirs_exist_ok=True)
        return str(target)

    @contextlib.contextmanager
    def as_directory(self) -> Iterator[str]:
        """The directory of the files, to read them; they must not be changed."""
        yield self.path

    # ---- tensors

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Any], directory: str | Path | None = None, name: str = TENSORS
    ) -> Checkpoint:
        """A checkpoint of named torch tensors, written as a safetensors file. Needs `safetensors`."""
        from safetensors.torch import save_file

        folder = Path(directory) if directory is not None else Path(tempfile.mkdtemp(prefix="checkpoint-"))
        folder.mkdir(parents=True, exist_ok=True)
        plain = {key: value.detach().contiguous().cpu().clone() for key, value in tensors.items()}
        save_file(plain, str(folder / name))
        return cls(folder)

    def tensors(self, name: str = TENSORS, device: str = "cpu") -> dict[str, Any]:
        """The named tensors of a safetensors file of this checkpoint."""
        from safetensors.torch import load_file

        return dict(load_file(str(Path(self.path) / name), device=device))

    # ---- metadata

    def get_metadata(self) -> dict[str, Any]:
        """The values that were set; {} if none were."""
        path = Path(self.path) / METADATA
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}

    def set_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Store values (JSON) beside the files, in place of all earlier ones."""
        (Path(self.path) / METADATA).write_text(json.dumps(dict(metadata)), encoding="utf-8")

    def update_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Store further values."""
        self.set_metadata(self.get_metadata() | dict(metadata))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Checkpoint) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)

    def __repr__(self) -> str:
        return f"Checkpoint({self.path})"

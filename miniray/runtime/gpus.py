"""The NVIDIA GPUs of this machine, as far as CUDA_VISIBLE_DEVICES lets this process see them.

nvidia-ml-py is asked where it is installed (`pip install 'miniray[gpu]'`), else the driver's files, which
containers may lack. Neither starts CUDA. Without a driver nothing is imported. Read once when a daemon
starts; any thread.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

DRIVER = "/proc/driver/nvidia/gpus"
SIGNS = (DRIVER, "/dev/nvidiactl", "/dev/dxg")
"""One of these is there where a driver is (the last one under WSL)."""

BRANDS = ("NVIDIA", "Tesla", "GeForce", "Quadro", "RTX")


@dataclass(frozen=True)
class Gpu:
    """One device. `name` is the maker's ("NVIDIA A100-SXM4-40GB"), `uuid` "" where nobody says it."""

    name: str
    uuid: str = ""


def visible() -> list[Gpu]:
    """The devices that this process may use, in CUDA's order of them."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    present = found()
    if wanted is None:
        return present
    shown = []
    for name in visible_names(wanted):
        if name.isdigit():
            index = int(name)
            known = present[index] if index < len(present) else None
        else:
            known = next((gpu for gpu in present if gpu.uuid.startswith(name)), None)
        if known is None and present:
            break  # as in CUDA: what follows a name that is none is not seen
        shown.append(known or Gpu(""))
    return shown


def visible_names(text: str) -> list[str]:
    """The devices that a value of CUDA_VISIBLE_DEVICES names; "-1" hides what follows, as in CUDA."""
    names: list[str] = []
    for name in text.split(","):
        name = name.strip()
        if not name or name == "-1":
            break
        names.append(name)
    return names


def found() -> list[Gpu]:
    """All devices of this machine, in the order of their numbers."""
    if not any(os.path.exists(sign) for sign in SIGNS):
        return []
    try:
        import pynvml
    except ImportError:
        return _listed()
    try:
        return _asked(pynvml)
    except pynvml.NVMLError:  # a driver without its library, or of another version
        return _listed()


def _asked(nvml: Any) -> list[Gpu]:
    nvml.nvmlInit()
    try:
        devices = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return [Gpu(_text(nvml.nvmlDeviceGetName(d)), _text(nvml.nvmlDeviceGetUUID(d))) for d in devices]
    finally:
        nvml.nvmlShutdown()


def _text(said: str | bytes) -> str:
    return said.decode() if isinstance(said, bytes) else said  # bytes in older versions


def _listed() -> list[Gpu]:
    """What the driver's files say."""
    try:
        directories = sorted(os.listdir(DRIVER))
    except OSError:
        return []
    gpus = []
    for directory in directories:
        words = {}
        try:
            with open(os.path.join(DRIVER, directory, "information")) as file:
                words = dict(line.split(":", 1) for line in file if ":" in line)
        except OSError:
            pass  # it is there, whatever it is called
        gpus.append(Gpu(words.get("Model", "").strip(), words.get("GPU UUID", "").strip()))
    return gpus


def accelerator_type(name: str) -> str:
    """A device's type as Ray names it: "A100" for "NVIDIA A100-SXM4-40GB"; "" when unknown."""
    words = [word for word in name.split() if word not in BRANDS]
    return words[0].split("-")[0] if words else ""

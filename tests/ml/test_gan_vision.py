"""The one door to torchvision, each case in a process of its own because an import cannot be undone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed")
ROOT = Path(__file__).resolve().parents[2]


def run(code: str, path: Path | None = None) -> str:
    folders = ([str(path)] if path else []) + [str(ROOT)]
    program = f"import sys; sys.path[:0] = {folders!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_comes_through_the_door_can_read_data_sets() -> None:
    pytest.importorskip("importlib.metadata").version("torchvision")
    out = run(
        "import warnings; warnings.simplefilter('ignore')\n"
        "from ml.gan.vision import torchvision\n"
        "module = torchvision()\n"
        "assert module is torchvision()\n"
        "from torchvision import datasets; print(datasets.CIFAR10.__name__)"
    )
    assert out == "CIFAR10"


def test_a_missing_operator_is_declared_and_said(tmp_path: Path) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import torch\nfrom . import part\n"
        "@torch.library.register_fake('torchvision::nms')\ndef nms(dets, scores, threshold): ...\n"
    )
    (package / "part.py").write_text("")
    out = run(
        "import warnings\n"
        "with warnings.catch_warnings(record=True) as said:\n"
        "    warnings.simplefilter('always')\n"
        "    from ml.gan.vision import torchvision\n"
        "    print(torchvision().__name__, sum('different builds' in str(one.message) for one in said))",
        tmp_path,
    )
    assert out == "torchvision 1"


@pytest.mark.parametrize("error", ["RuntimeError('beyond repair')", "OSError('libx.so: not found')"])
def test_a_torchvision_that_cannot_be_mended_is_none_and_leaves_nothing(tmp_path: Path, error: str) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(f"raise {error}\n")
    out = run(
        "import warnings; warnings.simplefilter('ignore')\n"
        "from ml.gan.vision import torchvision\n"
        "print(torchvision(), 'torchvision' in sys.modules)",
        tmp_path,
    )
    assert out == "None False"


def test_an_absent_torchvision_is_none_without_a_word() -> None:
    out = run(
        "import warnings; warnings.simplefilter('error')\n"
        "sys.modules['torchvision'] = None\n"
        "from ml.gan.vision import torchvision\n"
        "print(torchvision())"
    )
    assert out == "None"

"""What the command lines of train and generate have in common: help texts, choices, checked types."""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

DEVICES = ("auto", "cpu", "cuda")
ADDRESS_HELP = "cluster: host:port or auto; empty: $MINIRAY_ADDRESS, else a local one for this run"


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the examples, and shows each default that says something."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        silent = action.default in (None, False, "", argparse.SUPPRESS)
        return text if silent else f"{text} (default: {action.default})".strip()


def command(name: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """The command line of `python -m ml.gan.NAME`, still without options."""
    return argparse.ArgumentParser(
        prog=f"python -m ml.gan.{name}", description=description, epilog=epilog, usage="%(prog)s [options]",
        formatter_class=HelpFormatter,
    )  # fmt: skip


def positive(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return value


def count(text: str) -> int:
    """An argparse type: an integer of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}: zero or more")
    return value


def epochs_or_auto(text: str) -> int | None:
    """An argparse type: a number of epochs, zero or more; None for "auto"."""
    return None if text == "auto" else count(text)


def fraction(text: str) -> float:
    """An argparse type: 0 <= value < 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text}: from 0 to below 1")
    return value


def above_zero(text: str) -> float:
    """An argparse type: a finite number greater than 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: greater than 0")
    return value


def seconds(text: str) -> float:
    """An argparse type: a finite number of at least 0."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: zero or more")
    return value


def seed(text: str) -> int:
    """An argparse type: what random numbers can be made from."""
    value = int(text)
    if abs(value) >= 2**62:
        raise argparse.ArgumentTypeError(f"{text}: between -2**62 and 2**62")
    return value


def unusable(folder: Path) -> str:
    """Why nothing can be written into a folder, which is made if it is not there; "" if it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        reason = error.strerror or str(error)
        return f"cannot write into {folder.absolute()} ({reason}): name another folder"

"""Text of other people, for a terminal: what would steer it, or turn the reading direction, is made visible.

Names of tasks, actors, nodes and resources, and sentences with them, are whatever a program says.
"""

from __future__ import annotations

import re

_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tab and line feed, and C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # directions
    "\u2028\u2029\ud800-\udfff]"  # separators; halves of characters, which cannot be encoded
)


def printable(text: str, indent: str = "") -> str:
    """The same with escapes in place of control characters; line breaks stay, followed by `indent`."""
    return _STEERING.sub(_escape, text).replace("\n", "\n" + indent)


def on_one_line(text: str) -> str:
    """The same without line breaks, too."""
    return printable(text).replace("\n", " ").replace("\t", " ")


def _escape(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"

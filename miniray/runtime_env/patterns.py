"""Which files of a directory are left out: patterns as in a .gitignore file.

A pattern with a slash in front or in the middle is relative to the directory of the file it
stands in, others match at any depth; a slash at the end means directories only; `!` takes a file
back in; `**` stands for any number of directories; the last pattern that matches decides. What
is inside a directory that is left out cannot be taken back in. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """One line."""

    matches: re.Pattern[str]
    takes_back: bool
    directories_only: bool


class Patterns:
    """The lines of one file, or of one list."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._rules = [rule for line in lines if (rule := _rule(line)) is not None]

    def leaves_out(self, path: str, is_directory: bool) -> bool | None:
        """Whether `path` (relative, with slashes) is left out; None when no line is about it."""
        answer = None
        for rule in self._rules:
            if (is_directory or not rule.directories_only) and rule.matches.fullmatch(path):
                answer = not rule.takes_back
        return answer


def _rule(line: str) -> Rule | None:
    text = line.rstrip("\r\n")
    while text.endswith(" ") and not text.endswith("\\ "):
        text = text[:-1]
    if not text or text.startswith("#"):
        return None
    takes_back = text.startswith("!")
    text = text[1:] if takes_back else text
    directories_only = text.endswith("/")
    text = text.rstrip("/")
    anchored = "/" in text
    text = text.lstrip("/")
    if not text:
        return None
    expression = _expression(text)
    if not anchored:
        expression = "(?:.*/)?" + expression
    return Rule(re.compile(expression, re.DOTALL), takes_back, directories_only)


def _expression(text: str) -> str:
    """The regular expression of a pattern without its leading and trailing slash."""
    out: list[str] = []
    at = 0
    while at < len(text):
        if text.startswith("**/", at) and (at == 0 or text[at - 1] == "/"):
            out.append("(?:.*/)?")
            at += 3
        elif text[at:] == "**" and (at == 0 or text[at - 1] == "/"):
            out.append(".+")
            at += 2
        elif text[at] == "*":
            out.append("[^/]*")
            at += 1
        elif text[at] == "?":
            out.append("[^/]")
            at += 1
        elif text[at] == "[" and (end := text.find("]", at + 2)) > 0:
            inside = text[at + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            negated = inside.startswith(("!", "^"))
            out.append(f"[^/{inside[1:]}]" if negated else f"[{inside}]")
            at = end + 1
        elif text[at] == "\\" and at + 1 < len(text):
            out.append(re.escape(text[at + 1]))
            at += 2
        else:
            out.append(re.escape(text[at]))
            at += 1
    return "".join(out)

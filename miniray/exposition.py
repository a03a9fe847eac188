"""Metric reports of processes, and figures of the cluster itself, as text that Prometheus reads.

A report is what `miniray.util.metrics` stores: JSON that user code may have written, so what is not
of the right shape is left out, and nothing in it can begin a line of its own. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

ORIGIN = {"JobId": "job_id", "NodeId": "node_id", "WorkerId": "worker_id"}
"""Labels of every line, and where they are in a report."""

KEY_PREFIX = b"metrics/"
"""Keys of reports in a job's namespace of the cluster's key-value store; the worker id follows."""

KINDS = ("counter", "gauge", "histogram")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_NOT_IN_LABELS = re.compile(r"[^a-zA-Z0-9_]")
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": " "})

Labels = list[tuple[str, str]]


def exposition(reports: Iterable[dict[str, Any]]) -> str:
    """Reports as text: for each metric its help, its type, and a line per process and set of tags."""
    families: dict[tuple[str, str], list[str]] = {}
    for report in reports:
        origin = [(label, str(report[field])) for label, field in ORIGIN.items()]
        for row in report["metrics"]:
            name = row["name"]
            if row["kind"] == "counter" and not name.endswith("_total"):
                name += "_total"
            lines = families.setdefault((name, row["kind"]), heading(name, row["kind"], row["description"]))
            for values, value in row["series"]:
                labels = [*zip(row["tag_keys"], values), *origin]
                lines.extend(_samples(name, row, labels, value))
    return "".join(f"{line}\n" for lines in families.values() for line in lines)


def heading(name: str, kind: str, description: str) -> list[str]:
    """The two lines before a metric's samples."""
    return [f"# HELP {name} {_on_one_line(description)}", f"# TYPE {name} {kind}"]


def sample(name: str, labels: Labels, value: float) -> str:
    """One line."""
    return f"{name}{_braces(labels)} {value}"


def parsed(report: bytes) -> dict[str, Any] | None:
    """A stored report; None when it is not one. Metrics of the wrong shape are left out."""
    try:
        found = json.loads(report)
        found["metrics"] = [row for row in found["metrics"] if _is_metric(row)]
        return found if all(isinstance(found[field], str) for field in ORIGIN.values()) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _is_metric(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and row.get("kind") in KINDS
        and isinstance(row.get("description"), str)
        and _is_name(row.get("name"))
        and isinstance(row.get("tag_keys"), list)
        and all(isinstance(key, str) for key in row["tag_keys"])
        and isinstance(row.get("series"), list)
        and all(_is_series(row, series) for series in row["series"])
    )


def _is_series(row: dict[str, Any], series: Any) -> bool:
    match series:
        case [list(tags), value] if len(tags) == len(row["tag_keys"]):
            if not all(isinstance(tag, str) for tag in tags):
                return False
        case _:
            return False
    if row["kind"] != "histogram":
        return _is_number(value)
    match value, row.get("boundaries"):
        case [[list(counts), total], list(edges)] if len(counts) == len(edges) + 1:
            return all(map(_is_number, [total, *counts, *edges]))
    return False


def _is_name(text: Any) -> bool:
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _samples(name: str, row: dict[str, Any], labels: Labels, value: Any) -> Iterator[str]:
    if row["kind"] != "histogram":
        yield sample(name, labels, value)
        return
    counts, total = value
    seen = 0
    for edge, count in zip([*row["boundaries"], "+Inf"], counts):
        seen += count
        yield sample(f"{name}_bucket", [*labels, ("le", str(edge))], seen)
    yield sample(f"{name}_sum", labels, total)
    yield sample(f"{name}_count", labels, seen)


def _braces(labels: Labels) -> str:
    if not labels:
        return ""
    texts = (f'{_NOT_IN_LABELS.sub("_", key)}="{value.translate(_ESCAPES)}"' for key, value in labels)
    return "{" + ",".join(texts) + "}"


def _on_one_line(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace("\r", " ")

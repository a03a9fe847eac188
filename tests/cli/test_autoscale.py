"""`miniray autoscale`: its options, and the commands it runs."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from miniray.autoscaler import CommandProvider, NodeKind
from miniray.commands.autoscale import kind_of


def test_kinds_of_nodes_are_read_and_what_is_none_is_said() -> None:
    assert kind_of("small:CPU=4") == NodeKind("small", {"CPU": 4})
    assert kind_of("gpu.1:CPU=8,GPU=0.5:2-3") == NodeKind("gpu.1", {"CPU": 8, "GPU": 0.5}, 2, 3)
    for text in ("small", "small:CPU", ":CPU=1", "small:CPU=x", "small:CPU=1:3-2", "a:CPU=1:2"):
        with pytest.raises(click.BadParameter, match=text):
            kind_of(text)


def test_commands_start_and_stop_nodes_and_their_failures_are_told(tmp_path: Path) -> None:
    told = tmp_path / "told"
    script = f'env | grep ^MINIRAY_NODE_ | sort > "{told}"'
    provider = CommandProvider("10.0.0.1:6379", script, script + '; echo "no such machine" >&2; exit 3')
    provider.start(NodeKind("small", {"CPU": 4.0}, labels={"zone": "a"}), "small-17-1")
    lines = dict(line.split("=", 1) for line in told.read_text().splitlines())
    assert lines["MINIRAY_NODE_HANDLE"] == "small-17-1" and lines["MINIRAY_NODE_KIND"] == "small"
    assert json.loads(lines["MINIRAY_NODE_RESOURCES"]) == {"CPU": 4.0}
    assert json.loads(lines["MINIRAY_NODE_LABELS"]) == {
        "zone": "a", "miniray.io/node-handle": "small-17-1", "miniray.io/node-type": "small"}
    with pytest.raises(RuntimeError, match="ended with 3: no such machine"):
        provider.stop("small-17-1")
    assert "MINIRAY_NODE_HANDLE=small-17-1" in told.read_text()
    slow = CommandProvider("10.0.0.1:6379", "sleep 600", "true", within_s=0.1)
    with pytest.raises(RuntimeError, match="did not end within"):
        slow.start(NodeKind("small", {"CPU": 4.0}), "small-17-2")

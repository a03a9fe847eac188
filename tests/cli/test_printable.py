"""What programs call things reaches a terminal as text, never as commands for it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from miniray._proto import gcs_pb2 as gcs
from miniray.commands import status, tables
from miniray.explanations import Explanation, Stack
from miniray.printable import on_one_line, printable
from miniray.runtime import output
from miniray.runtime.logs import TASK

EVIL = "f\x1b]0;owned\x07\x1b[2J\x9b31m\r\nall is well \u202etxt"


def steers(text: str) -> bool:
    numbers = [ord(one) for one in text if one not in "\n\t"]
    return any(number < 32 or 127 <= number < 160 or number == 0x202E for number in numbers)


def test_what_steers_is_shown_and_everything_else_stays() -> None:
    assert steers(EVIL)
    assert printable("a\x1b[2Jb\x9b\u202ec\td") == "a\\x1b[2Jb\\x9b\\u202ec\td"
    assert printable("two\nlines", "  ") == "two\n  lines"
    assert on_one_line("two\nlines\there") == "two lines here"
    for kept in ("émile", "中文", "😀", "{'CPU': 1.0}", "a–b"):
        assert printable(kept) == on_one_line(kept) == kept
    assert not steers(printable("".join(map(chr, range(0x3000)))))


def test_no_cell_of_a_table_and_no_line_of_an_explanation_steers() -> None:
    said = [
        tables.table(("name",), [(EVIL,)]),
        str(Explanation(gcs.Explanation(kind="task", sentence=EVIL, chain=[EVIL], story=[EVIL]))),
        str(Stack(gcs.Finding(title=EVIL, running=[EVIL], stack=EVIL, silent=EVIL))),
    ]
    for text in said:
        assert "owned" in text and not steers(text)
        assert not [line for line in text.splitlines() if line.startswith("all is well")], "a line of its own"


def test_the_status_of_a_cluster_steers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = gcs.ClusterStatus()
    node = found.nodes.add(node_name=EVIL)
    node.total.amounts[EVIL] = 10_000
    demand = found.demand.add(count=1, reason=EVIL)
    demand.resources.amounts[EVIL] = 10_000

    class Connected:
        def __enter__(self) -> object:
            return (lambda field, message: SimpleNamespace(status=found)), "there"

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(status, "connect", lambda address: Connected())
    shown = CliRunner().invoke(status.status, color=True).output
    assert shown.count("owned") == 4 and not steers(shown)


def test_a_name_makes_no_mark_in_a_log(tmp_path: Path) -> None:
    log = tmp_path / "worker.out"
    with log.open("wb") as file:
        stream = output.MarkedStream(file.fileno())
        stream.mark("f\n:actor_name:Other")
        stream.flush()
    assert log.read_text().splitlines()[1:] == [f"{TASK}f :actor_name:Other"]

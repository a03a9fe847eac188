"""Workers' output on its way: marks in the files, lines out of them, one line for many equal ones."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from miniray.runtime import logs, output
from miniray.runtime.log_stream import Deduplicator, Line, Sink
from miniray.runtime.output import MarkedStream
from miniray.runtime.task_context import CURRENT, NO_LEASE, TaskContext

TOKEN = b"token"


@pytest.fixture
def stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MarkedStream]:
    """A worker's stdout; the file is "out"."""
    for name, value in (("_job", "01000000"), ("_actor", ""), ("unfinished", False)):
        monkeypatch.setattr(output, name, value)
    descriptor = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    yield MarkedStream(descriptor)
    os.close(descriptor)


def run_as(stream: MarkedStream, task: str, *texts: str) -> None:
    """What a task of this name prints."""
    token = CURRENT.set(TaskContext(b"", task, 0, b"", NO_LEASE))
    for text in texts:
        print(text, end="", file=stream)
    CURRENT.reset(token)


def written(tmp_path: Path) -> str:
    return (tmp_path / "out").read_text()


# ---- the worker's side


def test_a_mark_precedes_the_first_line_of_another_task(stream: MarkedStream, tmp_path: Path) -> None:
    run_as(stream, "f", "one\n", "two\n")
    run_as(stream, "f", "three\n")
    run_as(stream, "g", "four\n")
    assert written(tmp_path) == ":job_id:01000000\n:task_name:f\none\ntwo\nthree\n:task_name:g\nfour\n"


def test_a_task_that_prints_nothing_writes_nothing(stream: MarkedStream, tmp_path: Path) -> None:
    run_as(stream, "f", "")
    run_as(stream, "g")
    assert written(tmp_path) == ""


def test_an_actor_is_marked_once_whatever_it_runs(
    stream: MarkedStream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", stream)
    output.is_actor("Counter")
    output.is_actor("Counter")
    marks = ":job_id:01000000\n:actor_name:Counter\n"
    assert written(tmp_path) == marks, "at once: its children may write first"
    run_as(stream, "__init__", "a\n")
    run_as(stream, "inc", "b\n")
    print("from a thread", file=stream)
    assert written(tmp_path) == marks + "a\nb\nfrom a thread\n"


def test_lines_leave_at_once_and_the_rest_before_the_result(
    stream: MarkedStream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", stream)
    run_as(stream, "f", "whole\n", "beg")
    assert written(tmp_path).endswith("whole\n") and output.unfinished
    output.settle()
    assert written(tmp_path).endswith(":task_name:f\nwhole\nbeg") and not output.unfinished
    run_as(stream, "g", "next\n")
    assert written(tmp_path).endswith("whole\nbeg\n:task_name:g\nnext\n"), "the mark begins a line"


def test_bytes_and_strange_characters_pass(stream: MarkedStream, tmp_path: Path) -> None:
    stream.buffer.write(b"raw\n")
    run_as(stream, "f", "ä\udc80\n")
    assert written(tmp_path) == "raw\n:job_id:01000000\n:task_name:f\nä\\udc80\n"


# ---- the raylet's side


class Reader:
    """`Logs` over two files of one worker."""

    def __init__(self, directory: Path) -> None:
        self.files = {name: open(directory / name, "ab", buffering=0) for name in ("out", "err")}
        self.batches: list[dict[str, Any]] = []
        self.logs = logs.Logs(self._emit, lambda token: "title", "ip")
        self.logs.opened(TOKEN, 42, str(directory / "out"), str(directory / "err"))

    def _emit(self, token: bytes, batch: bytes) -> None:
        assert token == TOKEN
        self.batches.append(json.loads(batch))

    def write(self, text: str, name: str = "out") -> None:
        self.files[name].write(text.encode())

    def read(self, to_the_end: bool = False) -> list[tuple[str, str, list[str]]]:
        """(stream, name, lines) of what is handed on by one look."""
        self.batches.clear()
        self.logs.read_all(to_the_end)
        assert all((batch["pid"], batch["ip"]) == (42, "ip") for batch in self.batches)
        return [(batch["stream"], batch["name"], batch["lines"]) for batch in self.batches]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    made = Reader(tmp_path)
    yield made
    made.logs.close()
    for file in made.files.values():
        file.close()


def test_lines_carry_the_name_of_the_last_mark(reader: Reader) -> None:
    reader.write("early\n:job_id:01\n:task_name:f\na\nb\n:task_name:g\n:task_name:h\nc\n")
    reader.write(":actor_name:A(x: 1)\noops\n", "err")
    assert reader.read() == [
        ("out", "title", ["early"]), ("out", "f", ["a", "b"]), ("out", "h", ["c"]),
        ("err", "A(x: 1)", ["oops"]),
    ]  # fmt: skip
    reader.write("d\n")
    assert reader.read() == [("out", "h", ["d"])] and reader.read() == []


def test_a_line_waits_for_its_end_or_the_workers(reader: Reader) -> None:
    reader.write("beg")
    assert reader.read() == []
    reader.write("inning\nrest")
    assert reader.read() == [("out", "title", ["beginning"])]
    assert reader.read(to_the_end=True) == [("out", "title", ["rest"])]
    reader.write("last")
    reader.batches.clear()
    reader.logs.closed(TOKEN)
    assert [batch["lines"] for batch in reader.batches] == [["last"]]
    assert reader.read() == []


def test_one_look_is_bounded_and_the_end_is_not(reader: Reader) -> None:
    line = "x" * 99 + "\n"
    reader.write(line * 30_000)
    first = sum(len(lines) for _, _, lines in reader.read())
    assert first == logs.LOOK_BYTES // 100
    rest = sum(len(lines) for _, _, lines in reader.read(to_the_end=True))
    assert first + rest == 30_000


def test_an_endless_line_comes_in_pieces(reader: Reader) -> None:
    reader.write("x" * (3 << 20))
    pieces = [len(line) for _ in range(4) for _, _, lines in reader.read(to_the_end=True) for line in lines]
    assert sum(pieces) == 3 << 20 and max(pieces) <= logs.LINE_BYTES + logs.READ_BYTES


def test_a_worker_whose_files_do_not_exist_yet_is_no_error(tmp_path: Path) -> None:
    reader = logs.Logs(lambda token, data: None, lambda token: "")
    reader.opened(TOKEN, 1, str(tmp_path / "no"), str(tmp_path / "file"))
    reader.read_all()
    reader.closed(TOKEN)


def test_marks_are_not_shown_in_a_tail() -> None:
    assert logs.without_marks(":job_id:1\n:task_name:f\nTraceback\n:actor_name:A\nend") == "Traceback\nend"


# ---- the driver's side


def lines(*texts: tuple[int, str]) -> list[Line]:
    return [Line("f", pid, "", text) for pid, text in texts]


def shown(repeats: Deduplicator, now: float, *texts: tuple[int, str]) -> list[str]:
    out = [line.text for line in lines(*texts) for line in repeats.add(now, line)]
    return out + [line.text for line in repeats.due(now)]


def test_equal_lines_of_several_workers_are_shown_once_and_counted() -> None:
    repeats = Deduplicator(5.0)
    assert shown(repeats, 0.0, (1, "ready"), (2, "ready"), (3, "ready")) == ["ready"]
    assert shown(repeats, 4.9) == []
    (told,) = shown(repeats, 5.0)
    assert told.startswith("ready [repeated 2x across cluster] (") and "RAY_DEDUP_LOGS=0" in told
    assert shown(repeats, 6.0, (4, "ready"), (5, "ready")) == []
    assert shown(repeats, 10.0) == ["ready [repeated 2x across cluster]"], "it is explained once"
    assert shown(repeats, 20.0) == [] and repeats.next_due() is None
    assert shown(repeats, 30.0, (1, "ready")) == ["ready"], "forgotten by now"


def test_what_one_worker_says_again_is_no_repetition() -> None:
    assert shown(Deduplicator(), 0.0, (1, "tick"), (1, "tick"), (1, "tick")) == ["tick"] * 3


def test_numbers_make_no_difference_but_words_do() -> None:
    repeats = Deduplicator()
    steps = (1, "step 1 of 9"), (2, "step 2 of 9"), (2, "stop 2")
    assert shown(repeats, 0.0, *steps) == ["step 1 of 9", "stop 2"]
    assert shown(repeats, 9.0) == ["step 2 of 9"], "a single one is told as it is"


def test_lines_of_numbers_only_are_all_shown() -> None:
    assert shown(Deduplicator(), 0.0, (1, "0.5"), (2, "0.7"), (3, "")) == ["0.5", "0.7", ""]


def test_everything_is_told_at_the_end() -> None:
    repeats = Deduplicator()
    shown(repeats, 0.0, (1, "a"), (2, "a"), (3, "a"), (1, "b"), (2, "b"))
    assert repeats.next_due() == 5.0
    told = [line.text for line in repeats.due(float("inf"))]
    assert told[0].startswith("a [repeated 2x") and told[1:] == ["b"] and repeats.next_due() is None


def test_prefixes_name_the_function_the_process_and_another_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_COLOR_PREFIX", "MINIRAY_COLOR_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    sink = Sink("stderr", "10.0.0.1")
    sink.show([Line("f", 7, "10.0.0.1", "here"), Line("", 8, "10.0.0.2", "there")])
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "(f pid=7) here\n(pid=8, ip=10.0.0.2) there\n"


def test_prefixes_are_coloured_when_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_COLOR_PREFIX", "1")
    Sink("stdout", "").show(lines((1, "a"), (2, "b")))
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("\x1b[") and first.endswith("(f pid=1)\x1b[0m a")
    assert first.split("(")[0] != second.split("(")[0]


def test_a_closed_stream_swallows_what_comes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = open(tmp_path / "f", "w")
    file.close()
    monkeypatch.setattr("sys.stdout", file)
    Sink("stdout", "").show(lines((1, "a")))
    monkeypatch.setattr("sys.stdout", None)
    Sink("stdout", "").show(lines((1, "a")))

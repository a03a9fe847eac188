"""Workers' output: whole lines, none lost, none twice, and no reading while nothing is new."""

from __future__ import annotations

import json
from pathlib import Path

from miniray.runtime.logs import PAUSE_FIRST_S, PAUSE_MAX_S, READ_BYTES, Logs


class Bench:
    def __init__(self, directory: Path) -> None:
        self.lines: list[tuple[str, str]] = []
        self.logs = Logs(self._emit, lambda token: "f")
        self.out, self.err = directory / "out", directory / "err"
        self.logs.opened(b"t", 42, str(self.out), str(self.err))

    def _emit(self, token: bytes, batch: bytes) -> None:
        message = json.loads(batch)
        assert token == b"t" and message["pid"] == 42 and message["name"] == "f"
        self.lines += [(message["stream"], line) for line in message["lines"]]

    def write(self, path: Path, text: str) -> None:
        with path.open("a") as file:
            file.write(text)


def test_lines_come_whole_and_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.logs.read_all()
    bench.write(bench.out, "one\ntw")
    bench.logs.read_all()
    bench.write(bench.out, "o\n\nthree\n")
    bench.write(bench.err, "oops\n")
    bench.logs.read_all()
    assert bench.lines == [("out", "one"), ("out", "two"), ("out", ""), ("out", "three"), ("err", "oops")]


def test_the_beginning_of_a_line_is_shown_when_its_end_does_not_come(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write(bench.out, "10 %")
    looks = 0
    while not bench.lines:
        bench.logs.read_all()
        looks += 1
    assert looks > 2, "it is given some time"
    for _ in range(10):
        bench.logs.read_all()
    bench.write(bench.out, "\nready\n50 %")
    bench.logs.read_all()
    bench.write(bench.out, " 100 %\n")
    bench.logs.read_all()
    assert bench.lines == [("out", "10 %"), ("out", "ready"), ("out", "50 % 100 %")]


def test_the_last_words_come_even_without_a_line_break(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write(bench.out, "one\nlast wo")
    bench.logs.read_all()
    bench.write(bench.out, "rds")
    bench.logs.closed(b"t")
    assert bench.lines == [("out", "one"), ("out", "last words")]


def test_long_output_is_read_in_pieces_without_loss(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    lines = [f"{n} {'x' * 1000}" for n in range(2 * READ_BYTES // 1000)]
    bench.write(bench.out, "\n".join(lines) + "\n")
    bench.logs.read_all()
    assert [line for _, line in bench.lines] == lines


def test_reading_slows_down_while_nothing_is_new(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write(bench.out, "x\n")
    bench.logs.read_all()
    assert bench.logs.pause_s == PAUSE_FIRST_S
    for _ in range(10):
        bench.logs.read_all()
    assert bench.logs.pause_s == PAUSE_MAX_S

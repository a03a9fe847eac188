"""Who is served and who is sent on: a chain for what is large, and never more than a few copies at once."""

from __future__ import annotations

from miniray.core.serving import (
    CHAINED_FROM_BYTES,
    NAMES_KEPT,
    SERVES_PER_OBJECT,
    SPREADS_KEPT,
    Serving,
)

X = b"x" * 28
LARGE, SMALL = CHAINED_FROM_BYTES, CHAINED_FROM_BYTES - 1


def node(number: int) -> bytes:
    return number.to_bytes(28, "big")


class Bench(Serving):
    def ask(self, number: int, size: int = LARGE, begun: bool = False,
            passes_on: bool = True) -> list[int] | None:
        names = self.asked(X, node(number), size, begun, passes_on)
        self.check()
        return None if names is None else [int.from_bytes(name, "big") for name in names]

    def end(self, number: int, complete: bool = True) -> None:
        self.ended(X, node(number), complete)
        self.check()


def test_each_reader_of_a_large_object_is_sent_to_the_one_before_it() -> None:
    bench = Bench()
    assert bench.ask(1) is None
    firsts = [names[0] for number in range(2, 40) if (names := bench.ask(number))]
    assert firsts == list(range(1, 39)), "a chain"
    assert len(bench.readers(X)) == 1


def test_a_reader_whose_way_is_blocked_comes_back_and_is_served_while_few_are() -> None:
    bench = Bench()
    assert bench.ask(1) is None
    for number in range(2, 6):
        assert bench.ask(number)
    assert [bench.ask(number) for number in range(2, 6)] == [None, None, [], []]
    bench.end(1)
    assert bench.ask(4) is None, "it was turned away and is still the one that came back"
    assert len(bench.readers(X)) == SERVES_PER_OBJECT


def test_the_next_reader_is_served_once_nobody_reads() -> None:
    bench = Bench()
    assert bench.ask(1) is None and bench.ask(2) == [1]
    bench.end(1)
    assert bench.ask(3) is None, "whoever has it passes it on beside us"
    assert bench.ask(4) == [3]


def test_who_breaks_off_is_not_named() -> None:
    bench = Bench()
    assert bench.ask(1) is None and bench.ask(2) == [1] and bench.ask(2) is None
    bench.end(2, complete=False)
    assert bench.ask(3) == [1]


def test_a_node_that_others_cannot_reach_is_served_but_never_named() -> None:
    bench = Bench()
    assert bench.ask(1, passes_on=False) is None
    assert bench.ask(2) is None, "there is nobody to send it to"
    assert bench.ask(3, passes_on=False) == [2]
    assert bench.ask(4) == [2]


def test_small_objects_are_sent_to_a_few_at_once_and_then_by_those_who_have_them() -> None:
    bench = Bench()
    assert [bench.ask(number, SMALL) for number in range(5)] == [None, None, None, [], []]
    for number in range(3):
        bench.end(number)
    assert bench.ask(3, SMALL) == [0, 1, 2]
    assert bench.ask(3, SMALL) is None, "it came back"
    assert bench.ask(1, SMALL) is None, "it has lost its copy: the others may have, too"


def test_who_has_some_bytes_is_served_the_rest() -> None:
    bench = Bench()
    for number in range(6):
        assert bench.ask(number, begun=True) is None


def test_streams_of_one_reader_are_one_copy() -> None:
    bench = Bench()
    assert bench.ask(1) is None and bench.ask(1) is None
    bench.end(1)
    assert bench.readers(X) == {node(1): 1}
    bench.end(1)
    assert not bench.readers(X) and bench.ask(2) is None


def test_what_is_remembered_has_limits() -> None:
    bench = Bench()
    assert bench.ask(0) is None
    for number in range(1, 3 * NAMES_KEPT):
        assert bench.ask(number)
    for number in range(3 * SPREADS_KEPT):
        assert bench.asked(node(number), node(1), LARGE) is None
        bench.ended(node(number), node(1), True)
    bench.check()
    assert len(bench.spreads) <= SPREADS_KEPT + 1 and bench.readers(X), "what is under way stays"

"""The argument that does not unpickle is found among the others, in every form that arguments travel in."""

from __future__ import annotations

from typing import Any

import pytest

from miniray.runtime import bad_arguments, notes, values


class Bad:
    def __reduce__(self) -> Any:
        return explode, ("a display",)


def explode(what: str) -> None:
    raise ValueError(f"needs {what}")


def payload(*args: Any, **kwargs: Any) -> bytes:
    packed, _, _ = values.serialize_args(args, kwargs)
    return packed if isinstance(packed, bytes) else packed.pack()


@pytest.mark.parametrize(("args", "kwargs", "which"), [
    ((Bad(),), {}, 0),
    ((1, Bad()), {}, 1),
    ((Bad(), "x", [2]), {}, 0),
    ((1, "x", {"deep": [1, (Bad(), 2)]}, 4, 5), {}, 2),
    ((1,), {"first": [1], "second": Bad()}, "second"),
    ((Bad(),), {"first": 1}, 0),
    ((), {"only": {"list": [Bad()]}}, "only"),
    (tuple(range(40)) + (Bad(), 3), {}, 40),
])  # fmt: skip
def test_it_is_named(args: Any, kwargs: Any, which: int | str) -> None:
    assert bad_arguments.culprit(payload(*args, **kwargs)) == which


def test_buffers_beside_the_pickle_count_for_nothing() -> None:
    numpy = pytest.importorskip("numpy")
    assert bad_arguments.culprit(payload(numpy.arange(1000), Bad(), numpy.arange(1000))) == 1


def test_what_can_be_read_names_nothing() -> None:
    assert bad_arguments.culprit(payload(1, "two", third=[3])) is None


def test_the_note_names_the_parameter_and_the_function() -> None:
    def train(model: Any, data: Any) -> None: ...

    error = ValueError("needs a display")
    bad_arguments.blame(error, payload(1, Bad()), "train", train)
    assert notes.of(error) == ["(while argument 'data' of train was unpickled on the worker)"]


def test_a_payload_that_is_no_pickle_is_blamed_as_a_whole() -> None:
    error = ValueError("cut short")
    bad_arguments.blame(error, b"\x80", "train", None)
    assert notes.of(error) == ["(while one of the arguments of train was unpickled on the worker)"]

"""Values survive the way through bytes: equal, typed, without copies where that is promised."""

from __future__ import annotations

import threading
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest

from miniray.runtime import values
from miniray.runtime.packed import aligned

Point = namedtuple("Point", "x y")


@dataclass
class Record:
    name: str
    numbers: list[int]


def round_trip(value):
    packed = values.serialize(value)
    whole = packed.pack()
    assert len(whole) == packed.nbytes
    assert b"".join(bytes(part) for part in packed.parts()) == whole
    return values.deserialize(whole)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -1,
        2**100,
        1.5,
        1j,
        "",
        "text",
        b"",
        b"bytes",
        b"x" * 100_000,
        (),
        (1, "a", None),
        [1, [2, [3, [4]]]],
        {"a": {"b": [1]}},
        {1, 2},
        Point(1, 2),
        Record("n", [1]),
        range(5),
        list(range(1000)),
        np.float32(1.5),
        np.int64(3),
        ("a" * 100_000,),
        bytearray(b"abc"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_value_comes_back_equal_and_of_its_type(value):
    back = round_trip(value)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(10),
        np.zeros((3, 4, 5), dtype=np.float32),
        np.ones((4, 4)).T,
        np.asfortranarray(np.ones((3, 5))),
        np.array([True, False]),
        np.array(7),
        np.zeros((0, 3)),
        np.array(["a", "bc"]),
        np.arange(20)[::2],
        np.zeros(3, dtype=[("a", "i4"), ("b", "f8")]),
        np.arange(3).astype("datetime64[D]"),
        np.ones((1,) * 7),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_array_comes_back_equal(array):
    back = round_trip(array)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)


def in_store(packed):
    """The packed bytes as they lie in the store: at a multiple of 64."""
    return aligned(memoryview(packed.pack())).toreadonly()


def test_arrays_are_read_only_views_on_the_packed_bytes():
    packed = in_store(values.serialize(np.arange(1000)))
    back = values.deserialize(packed)
    assert not back.flags.writeable
    assert np.shares_memory(back, np.frombuffer(packed, dtype=np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        back[0] = 1


def test_arrays_from_plain_bytes_are_aligned_and_read_only():
    for size in range(1, 40):
        back = values.deserialize(values.serialize(np.ones(size)).pack())
        inner = values.deserialize(values.serialize([np.ones(size), np.ones(3)]).pack())
        for array in (back, *inner):
            assert array.ctypes.data % 64 == 0
            assert not array.flags.writeable


def test_arrays_inside_other_values_are_views_too():
    packed = in_store(values.serialize({"a": np.arange(1000), "b": [np.ones(500)], "c": Record("x", [1])}))
    back = values.deserialize(packed)
    assert np.shares_memory(back["a"], np.frombuffer(packed, dtype=np.uint8))
    assert np.shares_memory(back["b"][0], np.frombuffer(packed, dtype=np.uint8))
    assert back["c"] == Record("x", [1])


def test_serializing_an_array_copies_nothing():
    array = np.zeros(100_000)
    parts = values.serialize(array).parts()
    assert any(np.shares_memory(np.frombuffer(part, dtype=np.uint8), array) for part in parts if len(part))


def test_buffers_start_at_multiples_of_64():
    parts = values.serialize([np.ones(3), np.ones(5), np.ones(70)]).parts()
    at = 0
    for part in parts:
        if isinstance(part, memoryview):
            assert at % 64 == 0
        at += len(part)


def test_object_arrays_keep_their_objects():
    array = np.array([Record("a", []), None], dtype=object)
    assert round_trip(array)[0] == Record("a", [])


def test_local_functions_and_classes_travel_by_value():
    offset = 10

    class Adder:
        def add(self, x):
            return x + offset

    assert round_trip(lambda x: x + offset)(1) == 11
    assert round_trip(Adder()).add(1) == 11


def test_functions_of_modules_travel_by_reference():
    assert round_trip(round_trip) is round_trip


def test_unpicklable_member_is_named():
    @dataclass
    class Holder:
        inner: dict

    with pytest.raises(TypeError) as error:
        values.serialize(Holder({"deep": [threading.Lock()]}), "the put value")
    text = str(error.value)
    assert text.startswith("Could not serialize the put value")
    assert "inner['deep'][0]" in text


def test_arguments_leave_holes_for_direct_references():
    from miniray.ids import ObjectRef

    ref, other = ObjectRef.from_random(), ObjectRef.from_random()
    payload, direct, nested = values.serialize_args((1, ref, "x"), {"k": other, "l": 2})
    assert direct == [ref, other]
    assert nested == []
    args, kwargs = values.deserialize_args(payload, ["filled", "also"])
    assert (list(args), kwargs) == ([1, "filled", "x"], {"k": "also", "l": 2})


def test_nested_references_are_reported_and_stay_references():
    from miniray.ids import ObjectRef

    ref = ObjectRef.from_random()
    payload, direct, nested = values.serialize_args(([ref],), {})
    assert (direct, nested) == ([], [ref])
    args, _ = values.deserialize_args(payload)
    assert args[0] == [ref]


def test_no_arguments_are_no_bytes():
    assert values.serialize_args((), {}) == (b"", [], [])
    assert values.deserialize_args(b"") == ((), {})


def test_unpicklable_argument_names_function_and_argument():
    with pytest.raises(TypeError, match="the argument .*lock.* for a task or actor some.function"):
        values.serialize_args((1, threading.Lock()), {}, "some.function")


def test_registered_serializer_is_used_by_exact_type():
    from miniray.util import deregister_serializer, register_serializer

    class Odd:
        def __init__(self, lock, value):
            self.lock, self.value = lock, value

    register_serializer(
        Odd, serializer=lambda odd: odd.value, deserializer=lambda value: Odd(threading.Lock(), value + 1)
    )
    try:
        assert round_trip(Odd(threading.Lock(), 1)).value == 2
    finally:
        deregister_serializer(Odd)
    with pytest.raises(TypeError):
        values.serialize(Odd(threading.Lock(), 1))


def test_foreign_bytes_are_refused():
    with pytest.raises(ValueError, match="not a packed value"):
        values.deserialize(b"\x01junk")


torch = pytest.importorskip("torch")


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.arange(10.0),
        lambda: torch.ones(3, 4, dtype=torch.bfloat16),
        lambda: torch.tensor(5),
        lambda: torch.zeros(0, 3),
        lambda: torch.randn(4, 4).T,
        lambda: torch.zeros(10, requires_grad=True),
        lambda: torch.nn.Parameter(torch.ones(2)),
        lambda: torch.tensor([1 + 2j]).conj(),
        lambda: torch.tensor([True, False]),
    ],
    ids=["float", "bfloat16", "scalar", "empty", "transposed", "grad", "parameter", "conjugate", "bool"],
)
def test_tensor_comes_back_equal(make):
    tensor = make()
    back = round_trip(tensor)
    assert torch.equal(back, tensor)
    assert (back.dtype, back.requires_grad, type(back)) == (tensor.dtype, tensor.requires_grad, type(tensor))


def test_inline_tensor_may_be_written():
    packed = values.serialize(torch.zeros(100_000)).pack()
    values.deserialize(packed).add_(1)
    assert float(values.deserialize(packed).sum()) == 0.0


def test_module_state_survives():
    model = torch.nn.Linear(3, 2)
    back = round_trip(model.state_dict())
    assert all(torch.equal(back[name], value) for name, value in model.state_dict().items())

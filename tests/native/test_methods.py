"""What is found on a handle: made natively, freed with it, known to the collector."""

from __future__ import annotations

import gc
import sys
import weakref
from typing import Any

import pytest

from miniray._native import Binder, BoundBase


class Bound(BoundBase):
    __slots__ = ()


class Info:
    """What is bound, with an end that can be seen."""


def handle_type(info: Any) -> Any:
    return type("Handle", (), {"run": Binder(Bound, info)})


def test_a_method_found_on_an_instance_names_both() -> None:
    info = Info()
    handle = handle_type(info)()
    found = handle.run
    assert type(found) is Bound and found._actor is handle and found._info is info
    assert isinstance(type(handle).run, Binder), "on the type it is the descriptor itself"
    with pytest.raises(AttributeError):
        found._actor = None


def test_no_reference_is_kept_or_lost() -> None:
    info = Info()
    cls = handle_type(info)
    handle = cls()
    before = sys.getrefcount(info), sys.getrefcount(handle), sys.getrefcount(Bound)
    held = [handle.run for _ in range(100)]
    assert sys.getrefcount(handle) == before[1] + 100
    del held
    assert (sys.getrefcount(info), sys.getrefcount(handle), sys.getrefcount(Bound)) == before


def test_a_handle_that_holds_its_own_method_is_collected() -> None:
    info = Info()
    gone = weakref.ref(info)
    cls = handle_type(info)
    handle = cls()
    handle.mine = handle.run
    cls.handle = handle
    del info, cls, handle
    gc.collect()
    assert gone() is None


def test_only_pairs_and_classes_of_them_are_taken() -> None:
    for wrong in ((), (1,), (1, 2, 3)):
        with pytest.raises(TypeError, match="an actor and a method"):
            Bound(*wrong)
    with pytest.raises(TypeError):
        Bound(1, info=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="BoundBase"):
        Binder(Info, 1)  # type: ignore[type-var]

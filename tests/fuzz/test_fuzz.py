"""Every target over its corpus and some seeded inputs; `make fuzz` goes on from there."""

from __future__ import annotations

import itertools

import pytest

from tests.fuzz import inputs

COUNTS = {"head": 15, "node": 15, "archive": 30}


@pytest.mark.parametrize("target", inputs.TARGETS)
def test_hostile_input_does_no_harm(target: str) -> None:
    assert inputs.corpus(target), "a target without a corpus"
    count = len(inputs.corpus(target)) + COUNTS.get(target, 150)
    for data in itertools.islice(inputs.stream(target, seed=7), count):
        inputs.run(target, data)


def test_an_input_says_the_same_each_time() -> None:
    first, second = (list(itertools.islice(inputs.stream("frame", 3), 50)) for _ in range(2))
    assert first == second

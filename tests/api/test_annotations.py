"""Marks of names: documented, remembered, and warned of once for each place of use."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest

from miniray.util.annotations import (
    AnnotationType,
    Deprecated,
    DeveloperAPI,
    PublicAPI,
    RayDeprecationWarning,
)

PROGRAM = """
from miniray.util.annotations import Deprecated

@Deprecated(message="take the other one", warning=True)
def old():
    return 15

print([old() for _ in range(3)])
"""


@pytest.mark.parametrize(
    "decorate, kind",
    [
        (PublicAPI, AnnotationType.PUBLIC_API),
        (PublicAPI(stability="beta"), AnnotationType.PUBLIC_API),
        (DeveloperAPI, AnnotationType.DEVELOPER_API),
        (DeveloperAPI(), AnnotationType.DEVELOPER_API),
        (Deprecated, AnnotationType.DEPRECATED),
        (Deprecated(message="take g"), AnnotationType.DEPRECATED),
    ],
)
def test_a_mark_leaves_the_function_as_it_is(decorate, kind):
    def plain(x):
        """Doubles."""
        return 2 * x

    marked = decorate(plain)
    assert marked is plain and marked(4) == 8
    assert marked.__doc__.startswith("Doubles.")
    assert marked._annotated_type is kind


def test_what_is_said_stands_in_the_docstring():
    assert "beta" in PublicAPI(stability="beta")(lambda: 0).__doc__
    assert "take g" in Deprecated(message="take g")(lambda: 0).__doc__
    with pytest.raises(ValueError, match="stability"):
        PublicAPI(stability="eternal")
    with pytest.raises(ValueError, match="since"):
        Deprecated(since=3)


def test_use_of_what_is_deprecated_warns_at_the_caller():
    @Deprecated(message="take B", warning=True)
    class A:
        def __init__(self, x):
            self.x = x

        @Deprecated(message="read x", warning=True)
        def get(self):
            return self.x

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert A(3).get() == 3
    assert [entry.category for entry in caught] == [RayDeprecationWarning] * 2
    assert "take B" in str(caught[0].message) and "read x" in str(caught[1].message)
    assert {entry.filename for entry in caught} == {__file__}


@pytest.mark.parametrize("filters, times", [("", 1), ("ignore::DeprecationWarning", 0)])
def test_a_program_sees_it_once_or_not_at_all(filters, times):
    environment = {**os.environ, "PYTHONWARNINGS": filters}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "[15, 15, 15]"
    assert done.stderr.count("take the other one") == times

"""The word that ends a run reaches workers without a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import miniray as ray
from ml.gan.cluster import give_word, word_is_out

pytestmark = pytest.mark.usefixtures("ray_shared")


def test_the_word_is_out_while_it_is_kept(wait_until: Any) -> None:
    run, other = Path("/somewhere/run"), Path("/somewhere/else")
    look = ray.remote(lambda: (word_is_out(run), word_is_out(other)))
    assert ray.get(look.remote()) == (False, False)
    word = give_word(run)
    wait_until(lambda: ray.get(look.remote()) == (True, False), timeout_s=120)
    del word
    wait_until(lambda: ray.get(look.remote()) == (False, False), timeout_s=120)

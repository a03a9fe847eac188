"""What daemons read out of a runtime environment."""

from __future__ import annotations

import pytest

from miniray.core import environments


@pytest.mark.parametrize(
    ("text", "needed", "limit_s"),
    [
        ("", False, 0.0),
        ('{"env_vars":{"A":"1"}}', False, 0.0),
        ('{"working_dir":"gcs://x.zip"}', True, environments.SETUP_TIMEOUT_S),
        ('{"pip":{"packages":[]},"config":{"setup_timeout_seconds":7}}', True, 7.0),
        ('{"uv":{"packages":[]},"config":{"setup_timeout_seconds":-1}}', True, float("inf")),
        ('{"config":{"setup_timeout_seconds":7}}', False, 0.0),
    ],
)
def test_what_has_to_be_made_and_how_long_it_may_take(text: str, needed: bool, limit_s: float) -> None:
    fields = environments.parse(text)
    assert environments.needs_setup(fields) == needed
    assert environments.setup_limit_s(fields) == limit_s


def test_values_of_variables_are_hidden() -> None:
    shown = environments.shown('{"env_vars":{"KEY":"secret"},"working_dir":"gcs://x.zip"}')
    assert "secret" not in shown and "KEY" in shown and "gcs://x.zip" in shown
    assert environments.shown("") == ""


@pytest.mark.parametrize("text", ["null", "[]", "7", "{", "[" * 100_000, '{"pip":"x"}', '{"py_modules":[1]}'])
def test_what_is_no_environment_is_said_to_be_none_and_asks_for_nothing(text: str) -> None:
    assert environments.malformed(text)
    assert not environments.needs_setup(environments.parse(text))
    assert environments.shown(text) in ("{}", "")


def test_a_limit_that_is_none_is_the_default() -> None:
    fields = environments.parse('{"working_dir":"gcs://x.zip","config":{"setup_timeout_seconds":"soon"}}')
    assert environments.setup_limit_s(fields) == environments.SETUP_TIMEOUT_S

"""Join strings: all that a machine needs to come in, in one word that shows when it is damaged."""

from __future__ import annotations

import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniray.runtime.join_string import PREFIX, JoinString, looks_like_one, parse

MADE = JoinString("10.0.0.5:6379", secrets.token_hex(32), secrets.token_bytes(32))


@settings(max_examples=50)
@given(st.text(min_size=1, max_size=80), st.binary(min_size=32, max_size=32) | st.just(b""))
def test_what_goes_in_comes_out(token: str, fingerprint: bytes) -> None:
    joined = JoinString("head.example:6379", token, fingerprint)
    assert parse(str(joined)) == joined


def test_it_is_one_word_of_letters_and_digits() -> None:
    text = str(MADE)
    assert text.startswith(PREFIX) and text.replace("_", "").isalnum() and len(text) < 130
    assert looks_like_one(text) and parse(f"  {text}\n") == MADE


@pytest.mark.parametrize("text", ["10.0.0.5:6379", "auto", "local", "/tmp/miniray-0-1", "mr_head:1"])
def test_addresses_are_not_taken_for_one(text: str) -> None:
    assert not looks_like_one(text)


def test_what_was_not_copied_whole_is_found_out() -> None:
    text = str(MADE)
    for damaged in (text[:-1], text[:-5], text + "A", text[:20] + text[21:], PREFIX, PREFIX + "0"):
        with pytest.raises(ValueError, match="not complete"):
            parse(damaged)
    with pytest.raises(ValueError, match="letters and digits"):
        parse(text[:30] + "-" + text[31:])


def test_another_versions_is_named() -> None:
    with pytest.raises(ValueError, match="another version"):
        parse("mr2_" + str(MADE)[len(PREFIX) :])
    with pytest.raises(ValueError, match="begins with"):
        parse("10.0.0.5:6379")


@settings(max_examples=50)
@given(st.text(alphabet="0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", max_size=300))
def test_garbage_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse(PREFIX + text)

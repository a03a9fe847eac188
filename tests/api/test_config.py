"""Knobs: one place, environment first, typed, few."""

from __future__ import annotations

import pytest

from miniray import config


def test_there_are_fewer_than_fifty():
    assert len(config.KNOBS) < 50


def test_environment_names_are_unique():
    names = [name for knob in config.KNOBS.values() for name in knob.environment]
    assert len(names) == len(set(names))


def test_every_knob_says_why():
    assert all(len(knob.reason) > 10 for knob in config.KNOBS.values())


def test_own_name_wins_over_rays(monkeypatch):
    monkeypatch.setenv("RAY_TASK_MAX_RETRIES", "5")
    assert config.get("task_max_retries") == 5
    monkeypatch.setenv("MINIRAY_TASK_MAX_RETRIES", "7")
    assert config.get("task_max_retries") == 7


@pytest.mark.parametrize(("text", "value"), [("0", False), ("1", True), ("False", False), ("true", True)])
def test_booleans(monkeypatch, text, value):
    monkeypatch.setenv("RAY_LOG_TO_DRIVER", text)
    assert config.get("log_to_driver") is value


def test_wrong_text_names_the_variable(monkeypatch):
    monkeypatch.setenv("MINIRAY_LEASE_IDLE_S", "soon")
    with pytest.raises(ValueError, match="MINIRAY_LEASE_IDLE_S='soon'"):
        config.get("lease_idle_s")


def test_a_cluster_agrees_on_its_knobs(monkeypatch):
    monkeypatch.setenv("MINIRAY_SPREAD_THRESHOLD", "0.25")
    monkeypatch.setenv("MINIRAY_AUTH_TOKEN", "secret")
    told = config.overrides()
    assert "secret" not in told
    monkeypatch.delenv("MINIRAY_SPREAD_THRESHOLD")
    try:
        config.adopt(told)
        assert config.get("spread_threshold") == 0.25
    finally:
        config.adopt("")
    assert config.get("spread_threshold") == 0.5


def test_unknown_knob():
    with pytest.raises(KeyError):
        config.get("no_such_knob")

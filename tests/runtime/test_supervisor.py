"""What a daemon tells systemd: one datagram each, and nothing to anybody else."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from miniray.runtime import supervisor


@pytest.fixture(params=["file", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
             ) -> Iterator[socket.socket]:
    """The socket of a supervisor, in the environment of this process."""
    name = str(tmp_path / "notify") if request.param == "file" else f"@miniray-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name[1:] if name.startswith("@") else name)
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield sock
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    supervisor.adopt()


def test_it_says_when_it_is_ready_and_when_it_ends(listener: socket.socket) -> None:
    supervisor.adopt()
    assert "NOTIFY_SOCKET" not in os.environ, "workers must not speak for the daemon"
    supervisor.ready("here")
    assert listener.recv(1000) == b"READY=1\nSTATUS=here"
    supervisor.stopping("drains")
    assert listener.recv(1000) == b"STOPPING=1\nSTATUS=drains"


def test_a_supervisor_that_does_not_listen_is_no_reason_to_fail(listener: socket.socket) -> None:
    supervisor.adopt()
    listener.close()
    supervisor.ready("here")


def test_without_a_supervisor_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    supervisor.adopt()
    supervisor.ready("here")

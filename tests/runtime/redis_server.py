"""A Redis server of a test's own: on a unix socket in its directory, writing each command to disk."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest


class RedisServer:
    """Debian's `redis-server`; `start` and `kill` as often as one likes, the data stays."""

    def __init__(self, directory: Path, *, fsync: str = "always") -> None:
        program = shutil.which("redis-server")
        if program is None:
            pytest.skip("redis-server is not installed (Debian: apt install redis-server)")
        pytest.importorskip("redis", reason="the extra miniray[redis] is not installed")
        self.socket = directory / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._command = [
            program, "--port", "0", "--unixsocket", str(self.socket), "--dir", str(directory),
            "--appendonly", "yes" if fsync else "no", "--save", "", "--appendfsync", fsync or "no",
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Until it answers."""
        import redis

        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while True:
            try:
                with redis.Redis(unix_socket_path=str(self.socket)) as client:
                    client.ping()
                return
            except redis.ConnectionError:
                assert time.monotonic() < deadline, "redis-server does not come up"
                time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL: what it has acknowledged must be on disk."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

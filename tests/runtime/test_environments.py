"""Environments of a node: made once, shared, kept while there is room, and removed when nobody uses them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from miniray.runtime import environments
from miniray.runtime.environments import Environments, Result


class FakeSetups:
    """Set-up processes that make a directory of 600 bytes for each environment, when they are let."""

    def __init__(self) -> None:
        self.started: list[tuple[dict[str, Any], Callable[[str], None]]] = []
        self.stopped: list[bytes] = []

    def set_up(self, token: bytes, request: dict[str, Any], log: str, done: Callable[[str], None]) -> None:
        self.started.append((request, done))

    def stop(self, token: bytes, force: bool) -> None:
        self.stopped.append(token)

    def finish(self) -> str:
        """The oldest one succeeds. The directory it has made."""
        request, done = self.started.pop(0)
        name = "-".join(request["fields"]["pip"]["packages"])
        directory = os.path.join(request["root"], "venvs", name)
        os.makedirs(directory)
        result = {"python": os.path.join(directory, "bin", "python"), "made": {directory: 600}}
        Path(request["result"]).write_text(json.dumps(result))
        done("")
        return directory


class Bench:
    """A node's environments, and who got which."""

    def __init__(self, session: Path) -> None:
        self.setups = FakeSetups()
        self.got: dict[bytes, Result | None] = {}
        self.problems: dict[bytes, str] = {}
        self.environments = Environments(
            str(session), "node", self.setups, lambda *_, **__: None, lambda: None)  # type: ignore[arg-type]

    def want(self, token: bytes, *packages: str, timeout: float = 600) -> None:
        fields = {"pip": {"packages": list(packages)}, "config": {"setup_timeout_seconds": timeout}}

        def done(result: Result | None, problem: str) -> None:
            self.got[token] = result
            self.problems[token] = problem

        self.environments.prepare(token, b"job", json.dumps(fields), done)


def there(directory: str) -> bool:
    return os.path.isdir(directory)


async def until(condition: Callable[[], Any]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def run(session: Path, steps: Callable[[Bench], Any]) -> None:
    async def main() -> None:
        await asyncio.wait_for(steps(Bench(session)), 30)

    asyncio.run(main())


def test_an_environment_is_made_once_for_all_who_want_it(tmp_path: Path) -> None:
    async def steps(bench: Bench) -> None:
        bench.want(b"1", "a")
        bench.want(b"2", "a")
        assert len(bench.setups.started) == 1
        bench.setups.finish()
        bench.want(b"3", "a")
        assert not bench.setups.started
        assert bench.got[b"1"] is bench.got[b"2"] is bench.got[b"3"] is not None

    run(tmp_path, steps)


def test_what_nobody_uses_is_removed_when_there_is_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "CACHE_BYTES", 1000)

    async def steps(bench: Bench) -> None:
        bench.want(b"1", "a")
        first = bench.setups.finish()
        bench.want(b"2", "b")
        second = bench.setups.finish()
        assert there(first) and there(second), "both are in use"
        bench.environments.released(b"2")
        await until(lambda: not there(second))
        assert there(first)
        bench.want(b"3", "b")
        assert len(bench.setups.started) == 1, "it has to be made anew"

    run(tmp_path, steps)


def test_what_was_used_last_is_kept_longest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "CACHE_BYTES", 1300)

    async def steps(bench: Bench) -> None:
        made = []
        for token, package in ((b"1", "a"), (b"2", "b")):
            bench.want(token, package)
            made.append(bench.setups.finish())
            bench.environments.released(token)
        bench.want(b"3", "a")
        bench.environments.released(b"3")
        assert all(map(there, made)), "there is room for two"
        bench.want(b"4", "c")
        bench.setups.finish()
        await until(lambda: not there(made[1]))
        assert there(made[0])

    run(tmp_path, steps)


def test_what_takes_too_long_is_stopped_and_refused(tmp_path: Path) -> None:
    async def steps(bench: Bench) -> None:
        bench.want(b"1", "a", timeout=1)
        await until(lambda: bench.setups.stopped)
        _, done = bench.setups.started.pop()
        done("it was killed")
        assert bench.got[b"1"] is None and "setup_timeout_seconds=1" in bench.problems[b"1"]

    run(tmp_path, steps)

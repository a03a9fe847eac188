"""Runtime environments of one node: made once, shared by the workers that ask for them, removed late.

::

    prepare ─▶ known ─────────────────────────────────────────────▶ done(Result, "")
        └─────▶ packages fetched from the GCS ─▶ set-up process ─┬▶ done(Result, "")
                (`uploads`)                      (time limit)    └▶ done(None, problem)

What was made stays for later workers. Directories that no living worker uses are removed, longest
unused first, while all of them together have more than `CACHE_BYTES`. Loop's thread of the
raylet; nothing here blocks but small files' reading.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from miniray.core import environments
from miniray.core.environments import Result
from miniray.runtime import agent, session_lock, uploads
from miniray.runtime.workers import WorkerProcesses

CACHE_BYTES = 10 << 30
FETCHED = "gcs://"

Done = Callable[[Result | None, str], None]


@dataclass(slots=True)
class Making:
    """One environment that is being made."""

    token: bytes
    waiting: dict[bytes, Done] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None
    too_late: str = ""


class Environments:
    """See the module head. `ask` puts a request to the GCS (`Bridge.ask`), `turn` sends it on its way."""

    def __init__(self, session_dir: str, ip: str, workers: WorkerProcesses, ask: Callable[..., None],
                 turn: Callable[[], None]) -> None:
        self._root = os.path.join(session_dir, "environments")
        self._logs = os.path.join(session_dir, "logs")
        self._ip = ip or "127.0.0.1"
        self._workers = workers
        self._ask = ask
        self._turn = turn
        self._loop = asyncio.get_running_loop()
        self._made: dict[str, Result] = {}
        self._making: dict[str, Making] = {}
        self._used_by: dict[bytes, str] = {}
        """Startup token of a worker -> the environment it was started in."""
        self._sizes: dict[str, int] = {}
        """Directories that were made -> bytes; longest unused first."""

    def prepare(self, startup_token: bytes, job_id: bytes, runtime_env: str, done: Done) -> None:
        """Call `done` with what a worker needs, or with why it cannot be had; at once where it can."""
        problem = environments.malformed(runtime_env)
        if problem:
            done(None, problem)
            return
        fields = environments.parse(runtime_env)
        if not environments.needs_setup(fields):
            done(Result(), "")
            return
        wanted = {name: fields[name] for name in environments.NEEDS_SETUP if fields.get(name)}
        key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:40]
        made = self._made.get(key)
        if made is not None:
            self._use(startup_token, key, made)
            done(made, "")
            return
        making = self._making.get(key)
        if making is None:
            making = self._making[key] = Making(os.urandom(16))
            making.waiting[startup_token] = done
            self._begin(key, making, job_id, wanted, environments.setup_limit_s(fields))
        else:
            making.waiting[startup_token] = done

    def withdraw(self, startup_token: bytes) -> bool:
        """The worker is not wanted any more. False when it does not wait here."""
        return any(making.waiting.pop(startup_token, None) for making in self._making.values())

    def released(self, startup_token: bytes) -> None:
        """A worker has ended."""
        if self._used_by.pop(startup_token, None) is not None:
            self._shrink()

    # ---- making ----

    def _begin(self, key: str, making: Making, job_id: bytes, wanted: dict[str, Any], limit_s: float) -> None:
        if limit_s != float("inf"):
            making.timer = self._loop.call_later(limit_s, self._too_late, making, limit_s)
        os.makedirs(os.path.join(self._root, "fetched"), exist_ok=True)
        places = [wanted.get("working_dir"), *(wanted.get("py_modules") or ())]
        missing = [uri for uri in places if uri and uri.startswith(FETCHED)]
        self._fetch(key, making, job_id, wanted, missing, {})

    def _fetch(self, key: str, making: Making, job_id: bytes, wanted: dict[str, Any], missing: list[str],
               archives: dict[str, str]) -> None:
        """Fetch the packages one after another, then run the set-up process."""
        if making.too_late:
            self._end(key, making, None, making.too_late, archives)
            return
        if not missing:
            self._set_up(key, making, wanted, archives)
            return
        uri, rest = missing[0], missing[1:]
        unpacked = os.path.join(self._root, "packages", os.path.basename(uri))
        if os.path.isdir(unpacked) or uri in archives:
            self._fetch(key, making, job_id, wanted, rest, archives)
            return
        path = os.path.join(self._root, "fetched", f"{making.token.hex()[:16]}-{len(archives)}")
        archives[uri] = path

        def fetched(problem: str) -> None:
            if problem:
                self._end(key, making, None, problem, archives)
            else:
                self._fetch(key, making, job_id, wanted, rest, archives)

        uploads.fetch(self._ask_now, job_id, uri, path, fetched)

    def _ask_now(self, *arguments: Any, **body: Any) -> None:
        self._ask(*arguments, **body)
        self._turn()

    def _set_up(self, key: str, making: Making, wanted: dict[str, Any], archives: dict[str, str]) -> None:
        result = os.path.join(self._root, f"{making.token.hex()}.json")
        log = os.path.join(self._logs, f"environment-{key[:12]}.log")
        request = {"fields": wanted, "root": self._root, "archives": archives, "result": result}

        def ended(problem: str) -> None:
            made = _read(result)
            problem = making.too_late or problem or made.problem
            if making.too_late and agent.tail_of(log):
                problem += ":\n" + agent.tail_of(log)
            self._end(key, making, made, problem, archives)

        self._workers.set_up(making.token, request, log, ended)

    def _too_late(self, making: Making, limit_s: float) -> None:
        making.timer = None
        making.too_late = f"it was not made within setup_timeout_seconds={limit_s:g}"
        self._workers.stop(making.token, force=True)

    def _end(self, key: str, making: Making, made: Result | None, problem: str,
             archives: dict[str, str]) -> None:
        self._making.pop(key, None)
        if making.timer is not None:
            making.timer.cancel()
        for path in archives.values():
            if os.path.exists(path):
                os.unlink(path)
        if problem or made is None:
            for done in making.waiting.values():
                done(None, f"[Node {self._ip}] {problem}")
            return
        self._made[key] = made
        for token, done in making.waiting.items():
            self._use(token, key, made)
            done(made, "")
        self._shrink()

    # ---- what was made, and its end ----

    def _use(self, startup_token: bytes, key: str, made: Result) -> None:
        self._used_by[startup_token] = key
        for directory, size in made.made.items():
            self._sizes.pop(directory, None)  # the latest used comes last
            self._sizes[directory] = size

    def _shrink(self) -> None:
        """Remove what nobody uses while there is too much."""
        total = sum(self._sizes.values())
        if total <= CACHE_BYTES:
            return
        used = {directory for key in self._used_by.values() for directory in self._made[key].made}
        for directory in list(self._sizes):
            if total <= CACHE_BYTES:
                return
            if directory not in used:
                total -= self._sizes.pop(directory)
                self._made = {key: made for key, made in self._made.items() if directory not in made.made}
                doomed = f"{directory}.{os.urandom(4).hex()}"
                os.rename(directory, doomed)
                self._loop.run_in_executor(None, session_lock.remove, doomed)


def _read(path: str) -> Result:
    try:
        with open(path) as file:
            found = Result(**json.loads(file.read()))
        os.unlink(path)
        return found
    except OSError:
        return Result(problem="the set-up process left no result")

"""The end of a worker on purpose: `exit_actor()`, what it drops, and the handlers that run last.

After `exit_actor()` no call of the actor starts any more: those that wait fail with the actor's
death. Then `__ray_shutdown__` of the actor runs, if it has one, and what was registered with
`atexit`. Neither runs when the actor is killed.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

from miniray._proto import worker_pb2 as wire
from miniray.exceptions import ActorDiedError
from miniray.runtime.task_context import ExitActor

if TYPE_CHECKING:
    from miniray.runtime.executor import Executor

REASON = "exit_actor() was called"


class Closed:
    """In the place of an actor's thread pools or event loops: whatever arrives is dropped."""

    def submit(self, peer: Any, frame: bytes) -> None:
        """The caller will learn of the actor's death."""

    def cancel(self, peer: Any, call: int, recursive: bool) -> None:
        """Nothing that could be cancelled is left."""

    def not_begun(self) -> list[bytes]:
        """None of what was queued will begin."""
        return []

    def running(self) -> list[Any]:
        """What still runs has no caller any more."""
        return []


def request(executor: Any) -> NoReturn:
    """`exit_actor()` in user code: what runs in this call ends here."""
    executor.leave_soon()
    raise ExitActor


def leave_soon(executor: Executor) -> None:
    """On an event loop the caller may be a task of the user's own, where nobody sees what is raised."""
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop().call_soon(close, executor)


def close(executor: Executor) -> None:
    """No further call starts, and the main thread ends the process when it is free."""
    with executor.worker.lock:
        executor.queue.clear()
        executor.concurrency = Closed()
        executor._exit = wire.Exit(graceful=True, reason=REASON)
    executor.work.notify(None)
    executor.worker.pump.wake()


def error() -> ActorDiedError:
    """The error of the call in which an actor left."""
    return ActorDiedError(f"The actor is dead because {REASON}.")


def run_handlers(actor: Any) -> None:
    """The last user code of this process. Errors are printed and change nothing."""
    shutdown = getattr(type(actor), "__ray_shutdown__", None)
    if shutdown is not None:
        try:
            shutdown(actor)
        except BaseException:
            traceback.print_exc()
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()

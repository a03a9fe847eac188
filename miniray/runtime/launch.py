"""Starting daemons: a local session for `init()`, heads and nodes.

::

    this process ─spawn─▶ launcher ─fork─▶ daemon (own session, child of init)
        │  imports what it needs             │  imports what it needs
        └── options, one line of JSON ─────▶ │
        ◀────── one line of JSON ─────────── │  can be reached

The interpreter is started first and told what to be later, so that the imports of both processes
run side by side; without options it ends in silence. To the same end this module loads nothing
but `os` until the interpreter runs. The daemon becomes a child of init (the user's `os.wait()`
never meets it) and lives in a session of its own; a local one ends with this process. Its output
goes to `logs/daemon.log` of the session.
"""

from __future__ import annotations

import os
import sys

from miniray.runtime import boot

TYPE_CHECKING = False  # typing's, without its import
if TYPE_CHECKING:
    from typing import Any

    from miniray.runtime.daemon import HeadOptions, NodeOptions

READY_WITHIN_S = 30.0


class LocalSession:
    """A daemon that was started for this process."""

    def __init__(self, ready: dict[str, Any]) -> None:
        """`ready` is the daemon's line."""
        self.session_dir: str = ready["session_dir"]
        self.socket: str = ready["socket"]
        self.token: str = ready["token"]
        self.node_id: str = ready["node_id"]
        self.pid: int = ready["pid"]
        self.cluster = ""
        """HOST:PORT of the head, where that is elsewhere."""

    def end(self, within_s: float = 5.0) -> None:
        """Tell the daemon to end and wait until it has; kills it after `within_s`.

        Then nothing is left: if all were killed with it that would do so, this process clears up.
        """
        from miniray.runtime import remains

        self._end_daemon(within_s)
        remains.clear_when_dead(self.session_dir)

    def _end_daemon(self, within_s: float) -> None:
        import select

        from miniray.runtime import agent

        fd = agent.pidfd(self.pid)
        if fd is None:
            return
        try:
            os.kill(self.pid, 15)
            ready, _, _ = select.select([fd], [], [], within_s)
            if not ready:
                os.kill(self.pid, 9)  # the zygote cleans up
        except ProcessLookupError:
            pass
        finally:
            os.close(fd)


class Launch:
    """A daemon on its way: `start`, `send` its options, wait until it is `ready`. Then `close`.

    `kind` is "local", "node" or "head", `output` a descriptor for what it prints; None: this
    process's own. Closed before it was sent options, the daemon never comes to be.
    """

    def __init__(self, kind: str, output: int | None = None) -> None:
        self._kind = kind
        self._output = output
        self._launcher = 0
        self._options = self._ready = -1
        self._directory = ""

    def start(self) -> None:
        """Start the interpreter, if that has not been done."""
        if self._launcher:
            return
        read_options, self._options = os.pipe()
        self._ready, write_ready = os.pipe()
        theirs = max(read_options, write_ready, self._output or 0) + 1  # nothing of ours is there
        actions: list[Any] = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        if self._output is not None:
            actions += [(os.POSIX_SPAWN_DUP2, self._output, number) for number in (1, 2)]
        command = [*boot.interpreter(), boot.__file__, self._kind]
        for number, descriptor in enumerate((read_options, write_ready), theirs):
            actions.append((os.POSIX_SPAWN_DUP2, descriptor, number))
            command.append(str(number))
        command.append(boot.ROOM_FOR_TITLES)
        try:
            self._launcher = os.posix_spawn(
                sys.executable, command, os.environ, file_actions=actions,
                setpgroup=0)    # out of the reach of a terminal: Ctrl-C is for this process
        finally:
            os.close(read_options)
            os.close(write_ready)

    def send(self, options: NodeOptions | HeadOptions) -> None:
        """Tell the daemon what to be. The options travel through a pipe: the token is in no command line."""
        from miniray.runtime import sessions
        from miniray.runtime.daemon import options_json

        self.start()
        self._directory = options.session_dir = options.session_dir or sessions.place()
        line = options_json(options)
        try:
            while line:
                line = line[os.write(self._options, line) :]
        except BrokenPipeError:
            pass  # it has ended: `ready` says so
        os.close(self._options)
        self._options = -1

    def ready(self) -> dict[str, Any]:
        """Wait until the daemon can be reached. Returns its line; RuntimeError says why it is not up."""
        import json

        line = self._read_line()
        ready: dict[str, Any] = json.loads(line) if line else {"error": "it ended before it was ready"}
        if "error" in ready:
            from miniray.runtime import remains

            remains.clear_when_dead(self._directory)  # it may have been killed before it had a zygote
            raise RuntimeError(f"the {self._kind} daemon did not start: {ready['error']}")
        return ready

    def close(self) -> None:
        """Let go of the daemon; it ends if it was not sent options."""
        is_wanted = self._options < 0
        for descriptor in (self._options, self._ready):
            if descriptor >= 0:
                os.close(descriptor)
        self._options = self._ready = -1
        launcher, self._launcher = self._launcher, 0
        if launcher:
            try:
                if not is_wanted:
                    os.kill(launcher, 9)    # it may be at its imports, and whoever pressed Ctrl-C waits
                os.waitpid(launcher, 0)
            except (ChildProcessError, ProcessLookupError):
                pass  # the user ignores SIGCHLD

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_line(self) -> bytes:
        """The daemon's line, b"" when it closed the pipe without one."""
        import select
        import time

        deadline = time.monotonic() + READY_WITHIN_S
        data = b""
        while not data.endswith(b"\n"):
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._ready], [], [], max(0.0, left))
            if not ready:
                raise RuntimeError(f"the {self._kind} daemon was not ready after {READY_WITHIN_S:.0f} s")
            piece = os.read(self._ready, 65536)
            if not piece:
                return b""
            data += piece
        return data


def start_local(options: NodeOptions) -> LocalSession:
    """Start GCS and raylet in one daemon for this process. RuntimeError says why it did not come up."""
    options.driver_pid = os.getpid()
    return LocalSession(start_daemon("local", options))


def start_daemon(
    kind: str, options: NodeOptions | HeadOptions, *, output: int | None = None
) -> dict[str, Any]:
    """Start a daemon and wait until it can be reached; see `Launch`. Returns its ready line."""
    with Launch(kind, output) as launch:
        launch.send(options)
        return launch.ready()

"""Process control: credentials, liveness, signals and whole process trees of this machine.

Used by daemons and the zygote on their only thread; no call here blocks for longer than a /proc
read. Linux only. Limits: a process that the user moved to another pid namespace is out of sight.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import struct
import time

TAIL_BYTES = 4096
"""Of a log, where its end is told."""


def die_with_parent(parent_pid: int) -> None:
    """SIGKILL for this process when the parent *thread* ends; ends at once when it already has."""
    from miniray import _native

    _native.set_pdeathsig(signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def become_subreaper() -> None:
    """Orphans among the descendants become children of this process."""
    from miniray import _native

    _native.set_subreaper()


def be_ended_first() -> None:
    """When memory runs out the kernel takes this process and what it starts, before daemons and others."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def name_process(title: str) -> None:
    """The name that `ps` and `top` show (15 bytes at most)."""
    from miniray import _native

    _native.set_process_name(title)


def peer_credentials(sock: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process at the other end of a unix socket."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _gid = struct.unpack("3i", raw)
    return pid, uid


def pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable when `pid` ends; None when it has ended already."""
    try:
        return os.pidfd_open(pid)
    except (ProcessLookupError, FileNotFoundError):  # gone; the second from sandboxed kernels
        return None


def signal_process(pid: int, sig: int) -> bool:
    """Send a signal; False when the process is gone."""
    try:
        os.kill(pid, sig)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def exit_detail(status: int) -> str:
    """A wait status in words: "exit status 3" or "signal SIGKILL"."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"signal {signal.Signals(number).name}"
        except ValueError:
            return f"signal {number}"
    return f"exit status {os.WEXITSTATUS(status)}"


def children_of(pid: int) -> list[int]:
    """Direct children of all threads of `pid`; [] when it is gone."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found.extend(int(word) for word in file.read().split())
        except OSError:
            continue
    return found


def descendants_of(pid: int) -> list[int]:
    """All processes below `pid`, parents before children."""
    found: list[int] = []
    queue = [pid]
    while queue:
        below = children_of(queue.pop())
        found.extend(below)
        queue.extend(below)
    return found


def kill_below(pid: int) -> int:
    """SIGKILL every process below `pid`. Returns how many there were."""
    victims = descendants_of(pid)
    for victim in victims:
        signal_process(victim, signal.SIGKILL)
    return len(victims)


def reap_all() -> list[tuple[int, int]]:
    """Reap every child that has ended: [(pid, wait status)]."""
    found: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        found.append((pid, status))


def end_below(within_s: float = 5.0) -> None:
    """Kill and reap everything below this process, which must be a subreaper.

    Again and again until nothing is left: a process whose parent dies while the tree is read is
    missed by that reading, and is a child of this process in the next one.
    """
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        alive = kill_below(os.getpid())
        reaped = reap_all()
        if not alive and not reaped:
            return
        if not reaped:
            time.sleep(0.001)


def kill_tree(pid: int) -> None:
    """SIGKILL `pid` and every process below it."""
    below = descendants_of(pid)
    signal_process(pid, signal.SIGKILL)
    for victim in below:
        signal_process(victim, signal.SIGKILL)


def is_stopped(pid: int) -> bool:
    """Whether a process stands still by SIGSTOP (or a debugger)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in ("T", "t")
    except OSError:
        return False


def anonymous_memory(pid: int) -> int:
    """Bytes of memory that are this process's own (not files, not shared), 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/status") as file:
            for line in file:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def raise_descriptor_limit() -> int:
    """Raise RLIMIT_NOFILE to its hard limit. Returns the new soft limit."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else 1 << 20
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return wanted


FATAL = "Fatal Python error:"


def last_words(path: str) -> str:
    """The end of what a process wrote; of a crash of the interpreter with a long stack also its beginning,
    which says what it was and which code was reached last."""
    text = tail_of(path, 1 << 16)
    end = text[-TAIL_BYTES:]
    begins = text.rfind(FATAL)
    if begins < 0 or FATAL in end:
        return end
    half = TAIL_BYTES // 2
    return f"{text[begins : begins + half]}\n…\n{text[-half:]}"


def tail_of(path: str, limit: int = TAIL_BYTES) -> str:
    """The last `limit` bytes of a text file, "" when there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - limit))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""

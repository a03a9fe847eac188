"""The program whose processes `kill_matrix` kills: tasks, actors, large objects, processes of the user.

`python -m tests.chaos.victim [SESSION_DIR]`, without a directory in a session of its own. Writes a line
per finished round; goes on until its input ends, and forgives the errors that a kill brings.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import Any

import miniray as ray
from miniray import exceptions


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Parent:
    """Starts processes that try to get away."""

    def spawn(self) -> int:
        """One plain child, and one that detaches itself twice and cleans its environment."""
        subprocess.Popen(["sleep", "1000"])
        escaped = "setsid sh -c 'sleep 1000 & sh -c \"sleep 1000 & wait\" & exit' &"
        subprocess.run(["sh", "-c", escaped], env={"PATH": os.environ["PATH"]}, check=True)
        return os.getpid()


@ray.remote(max_retries=-1)
def work(number: int) -> bytes:
    """A result that lives in the store."""
    time.sleep(0.005)
    return bytes([number]) * 200_000


def rounds() -> None:
    """Until the session is gone."""
    parent = Parent.remote()
    kept: list[Any] = [ray.put(bytes(3_000_000))]
    while ray.is_initialized():
        refs = [work.remote(number) for number in range(6)]
        pending: Any = parent.spawn.remote()
        assert [value[0] for value in ray.get(refs, timeout=120)] == list(range(6))
        ray.get(pending, timeout=120)
        kept = [*kept[-3:], *refs]
        print("round", flush=True)


def main() -> int:
    """0 at the end of the input, 1 when the session has gone."""
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    if len(sys.argv) > 1:
        ray.init(sys.argv[1], configure_logging=False, log_to_driver=False)
    else:
        ray.init(num_cpus=2, object_store_memory=80 << 20, configure_logging=False)
    try:
        rounds()
    except (exceptions.RayError, ConnectionError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

r"""Somebody has stopped a worker.

names: it is stopped by a signal \(SIGSTOP\)
names: kill -CONT \d+
"""

import os
import signal

import miniray as ray

ray.init(num_cpus=2)


@ray.remote
def stops():
    os.kill(os.getpid(), signal.SIGSTOP)


ref = stops.remote()
print("why:", ref.hex(), flush=True)
input()

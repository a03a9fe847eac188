"""Somebody kills the worker.

names: SIGKILL
"""

import os
import signal

import miniray as ray

ray.init(num_cpus=2)


@ray.remote(max_retries=0)
def victim():
    os.kill(os.getpid(), signal.SIGKILL)


ray.get(victim.remote())

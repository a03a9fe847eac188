"""The program gives a task up and asks for its result.

names: TaskCancelledError
"""

import time

import miniray as ray

ray.init(num_cpus=2)


@ray.remote
def long():
    time.sleep(600)


ref = long.remote()
ray.cancel(ref)
ray.get(ref)

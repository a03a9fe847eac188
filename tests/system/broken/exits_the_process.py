"""A task ends its process.

names: WorkerCrashedError
names: exit status 7
"""

import os

import miniray as ray

ray.init(num_cpus=2)


@ray.remote(max_retries=0)
def leave():
    os._exit(7)


ray.get(leave.remote())

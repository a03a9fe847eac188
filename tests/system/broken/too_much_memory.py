"""The memory guard ends a task.

names: OutOfMemoryError
names: it ran hungry with .* GiB when the machine had .* GiB in use, more than 1%
"""

import os
import time

import miniray as ray

os.environ["MINIRAY_MEMORY_GUARD"] = "0.01"
ray.init(num_cpus=2)


@ray.remote(max_retries=0)
def hungry():
    time.sleep(600)


ray.get(hungry.remote())

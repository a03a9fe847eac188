"""A return value cannot be pickled.

names: the return value
names: lock
"""

import threading

import miniray as ray

ray.init(num_cpus=2)


@ray.remote
def make():
    return threading.Lock()


ray.get(make.remote())

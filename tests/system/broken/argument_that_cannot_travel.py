"""An argument cannot be pickled.

names: lock
names: for a task or actor __main__.f
"""

import threading

import miniray as ray

ray.init(num_cpus=2)


@ray.remote
def f(value): ...


f.remote(threading.Lock())

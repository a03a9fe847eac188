"""Native code reads where nothing is.

names: SIGSEGV
names: in crash
"""

import ctypes

import miniray as ray

ray.init(num_cpus=2)


@ray.remote(max_retries=0)
def crash():
    ctypes.string_at(0)


ray.get(crash.remote())

"""A task's function holds a lock of its module, which cannot travel.

names: Could not serialize the function
names: lock .*obj=<unlocked _thread.lock
"""

import threading

import miniray as ray

ray.init(num_cpus=1)
lock = threading.Lock()
ray.remote(lambda: lock.locked()).remote()

"""A method waits for an event that only another method of the same actor could set.

names: behind 1 call of this process
names: wait .* runs here .*event_that_nobody_sets.py:20 in wait
"""

import threading

import miniray as ray

ray.init(num_cpus=1)


@ray.remote
class Gate:
    def __init__(self):
        self.opened = threading.Event()

    def wait(self):
        self.opened.wait()

    def open(self):
        self.opened.set()


gate = Gate.remote()
waits = gate.wait.remote()
print("why:", gate.open.remote().hex(), flush=True)
input()

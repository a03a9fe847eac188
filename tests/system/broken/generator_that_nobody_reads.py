"""A generator may be one item ahead, and nobody takes its items.

names: waits for its consumer: 1 items ahead, 1 allowed
names: what helps: take the items
"""

import miniray as ray

ray.init(num_cpus=1)


@ray.remote(num_returns="streaming", _generator_backpressure_num_objects=1)
def numbers():
    yield from range(10)


stream = numbers.remote()
print("why:", stream.completed().hex(), flush=True)
input()

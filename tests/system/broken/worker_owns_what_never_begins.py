r"""A task waits inside for a task of its own that fits nowhere.

names: outer .* runs here.* and waits for object .* at .*worker_owns_what_never_begins.py:\d+ in outer
names: task inner waits for a worker
names: 'TPU' \(asked 1\)
"""

import miniray as ray

ray.init(num_cpus=2)


@ray.remote(resources={"TPU": 1})
def inner(): ...


@ray.remote
def outer():
    return ray.get(inner.remote())


ref = outer.remote()
print("why:", ref.hex(), flush=True)
input()

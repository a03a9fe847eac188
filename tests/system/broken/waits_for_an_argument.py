r"""A chain of tasks waits for one that cannot run.

names: task last waits for argument
names: task middle waits for argument
names: task first waits for a worker
names: 'TPU' \(asked 1\)
"""

import miniray as ray

ray.init(num_cpus=2)


@ray.remote(resources={"TPU": 1})
def first(): ...


@ray.remote
def middle(value): ...


@ray.remote
def last(value): ...


ref = last.remote(middle.remote(first.remote()))
print("why: last", flush=True)
input()

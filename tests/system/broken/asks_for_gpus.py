r"""Asks for accelerators that no node has.

names: 'GPU' \(asked 8\)
names: what helps: start a node that has it
"""

import miniray as ray

ray.init(num_cpus=2)


@ray.remote(num_gpus=8)
def train(): ...


ref = train.remote()
print("why:", ref.hex(), flush=True)
input()

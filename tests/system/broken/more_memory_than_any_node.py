"""A task asks for more memory than any node has.

names: no node has .* GiB memory: the most is
"""

import miniray as ray

ray.init(num_cpus=1, _memory=4 << 30)


@ray.remote(memory=100 << 40)
def work(): ...


ref = work.remote()
print("why:", ref.hex(), flush=True)
input()

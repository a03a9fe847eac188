"""Asks for more CPUs than the largest node has.

names: no node has 64 CPU: the most is 2 on
"""

import miniray as ray

ray.init(num_cpus=2)


@ray.remote(num_cpus=64)
def big(): ...


ref = big.remote()
print("why: big", flush=True)
input()

"""A placement group with a bundle larger than any node.

names: bundle 1: no node has 32 CPU: the most is 2
"""

import miniray as ray

ray.init(num_cpus=2)
group = ray.util.placement_group([{"CPU": 1}, {"CPU": 32}])
print("why:", group.id.hex(), flush=True)
input()

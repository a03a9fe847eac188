"""A placement group that needs more nodes than there are, and a get of its ready().

names: placement group .* waits for room
names: STRICT_SPREAD needs 2 nodes
"""

import miniray as ray

ray.init(num_cpus=2)
group = ray.util.placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_SPREAD")
ref = group.ready()
print("why:", ref.hex(), flush=True)
input()

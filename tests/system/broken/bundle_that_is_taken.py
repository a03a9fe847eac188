"""Another task of the group holds the only bundle.

names: held by 1 x holds
"""

import time

import miniray as ray
from miniray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

ray.init(num_cpus=4)
group = ray.util.placement_group([{"CPU": 1}])
ray.get(group.ready())
strategy = PlacementGroupSchedulingStrategy(group)


@ray.remote(num_cpus=1, scheduling_strategy=strategy)
def holds():
    time.sleep(600)


first = holds.remote()
time.sleep(1)
ref = holds.remote()
print("why:", ref.hex(), flush=True)
input()

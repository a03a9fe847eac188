"""A placement group is removed while a task waits for it.

names: TaskPlacementGroupRemoved
names: Placement group [0-9a-f]{36} was removed
"""

import miniray as ray
from miniray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

ray.init(num_cpus=1)
group = ray.util.placement_group([{"CPU": 1}])
ray.get(group.ready())
ray.util.remove_placement_group(group)


@ray.remote(num_cpus=1)
def late(): ...


ray.get(late.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group)).remote())

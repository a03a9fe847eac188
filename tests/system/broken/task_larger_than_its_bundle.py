r"""A task asks for more than the bundle it is bound to.

names: resource request \{'CPU': 2(\.0)?\} cannot fit into any bundles
"""

import miniray as ray
from miniray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

ray.init(num_cpus=4)
group = ray.util.placement_group([{"CPU": 1}])
ray.get(group.ready())


@ray.remote(num_cpus=2)
def wide(): ...


strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
wide.options(scheduling_strategy=strategy).remote()

"""A task is bound to a node that does not live.

names: the only one allowed, is not alive
"""

import miniray as ray
from miniray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ray.init(num_cpus=2)


@ray.remote
def there(): ...


strategy = NodeAffinitySchedulingStrategy("ab" * 28, soft=False)
ray.get(there.options(scheduling_strategy=strategy).remote())

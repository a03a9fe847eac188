"""A task returns fewer values than num_returns.

names: 3
names: split
"""

import miniray as ray

ray.init(num_cpus=2)


@ray.remote(num_returns=3)
def split():
    return 1, 2


ray.get(split.remote())

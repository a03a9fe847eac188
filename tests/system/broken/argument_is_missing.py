"""A call without an argument that the function needs.

names: missing .*argument.* '?size
"""

import miniray as ray

ray.init(num_cpus=2)


@ray.remote
def make(name, size): ...


make.remote("x")

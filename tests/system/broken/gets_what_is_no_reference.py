"""get() of a value.

names: (int|ObjectRef)
"""

import miniray as ray

ray.init(num_cpus=2)
ray.get(7)

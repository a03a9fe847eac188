"""Looks for an actor by a wrong name.

names: ValueError
names: 'registri'
"""

import miniray as ray

ray.init(num_cpus=2)
ray.get_actor("registri")

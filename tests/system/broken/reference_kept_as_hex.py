"""Only the id of an object was kept.

names: it was freed: nothing referred to it any more
"""

import miniray as ray

ray.init(num_cpus=2)
kept = ray.put(b"x" * 1000).binary()
ray.put(b"something else")
ray.get(ray.ObjectRef(kept))

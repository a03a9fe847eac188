"""An object that can never fit.

names: can never fit: the object store of this node has
names: larger object_store_memory
"""

import miniray as ray

ray.init(num_cpus=2, object_store_memory=80 * 2**20)
ray.put(bytearray(200 * 2**20))

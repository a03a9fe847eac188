"""An object stays because an actor keeps a reference.

names: held by worker
names: actor Cache .*: held by 1 reference of this process
"""

import miniray as ray

ray.init(num_cpus=2)


@ray.remote
class Cache:
    def keep(self, refs):
        self.refs = refs


cache = Cache.remote()
ref = ray.put(b"x" * 300_000)
ray.get(cache.keep.remote([ref]))
print("why:", ref.hex(), flush=True)
input()

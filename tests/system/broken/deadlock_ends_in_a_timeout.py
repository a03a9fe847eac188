"""The same, found by a get with a timeout: its error tells.

names: GetTimeoutError
names: this is a cycle, and none of them can ever end: Selfish.outer
"""

import miniray as ray

ray.init(num_cpus=2)


@ray.remote
class Selfish:
    def outer(self, me):
        return ray.get(me.inner.remote())

    def inner(self):
        return 1


selfish = Selfish.remote()
ray.get(selfish.outer.remote(selfish), timeout=8)

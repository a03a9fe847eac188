"""An actor waits for a call of its own, which cannot begin before.

names: this is a cycle, and none of them can ever end: Selfish.outer
names: break the circle
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
ref = selfish.outer.remote(selfish)
print("why:", ref.hex(), flush=True)
input()

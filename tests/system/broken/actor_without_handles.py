"""Nobody keeps a handle of the actor.

names: is dead
names: all handles of the actor went out of scope
"""

import miniray as ray

ray.init(num_cpus=2)


@ray.remote
class Forgotten:
    def ready(self): ...


actor = Forgotten.remote()
ray.get(actor.ready.remote())
actor_id = actor._actor_id.hex()
del actor
print("why:", actor_id, flush=True)
input()

"""Actors keep their CPUs for ever, so a task never begins.

names: held by 2 x Holder
"""

import miniray as ray

ray.init(num_cpus=2)


@ray.remote(num_cpus=1)
class Holder:
    def ready(self): ...


@ray.remote
def never(): ...


holders = [Holder.remote() for _ in range(2)]
ray.get([holder.ready.remote() for holder in holders])
ref = never.remote()
print("why:", ref.hex(), flush=True)
input()

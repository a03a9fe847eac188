r"""Calls a method in a concurrency group that its actor does not have, whether it runs threads or coroutines.

names: Threaded.*\n.*read was called in the concurrency group 'oi', which its actor does not have
names: Looped.*\n.*which its actor does not have; it has 'io'
"""

import miniray as ray

ray.init(num_cpus=2)


@ray.remote(concurrency_groups={"io": 2})
class Threaded:
    def read(self): ...


@ray.remote(concurrency_groups={"io": 2})
class Looped:
    async def read(self): ...


for actor in (Threaded.remote(), Looped.remote()):
    try:
        ray.get(actor.read.options(concurrency_group="oi").remote())
    except ray.exceptions.RayTaskError as error:
        print(error)

"""The program kills an actor and calls it.

names: ActorDiedError
names: killed by `ray.kill` in the driver of job
"""

import miniray as ray

ray.init(num_cpus=2)


@ray.remote
class Counter:
    def add(self): ...


counter = Counter.remote()
ray.get(counter.add.remote())
ray.kill(counter)
ray.get(counter.add.remote())

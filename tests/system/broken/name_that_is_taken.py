"""Two actors with one name.

names: ActorAlreadyExistsError
names: 'registry'
"""

import miniray as ray

ray.init(num_cpus=2)


@ray.remote
class Registry:
    def ready(self): ...


first = Registry.options(name="registry").remote()
ray.get(first.ready.remote())
second = Registry.options(name="registry").remote()

r"""Asks for an actor by a name that is spelt wrongly, and in a namespace where it is not.

names: Failed to look up actor with name 'countr'
names: Did you mean 'counter'\?
names: There is one of that name in the namespace 'prod'
"""

import miniray as ray

ray.init(num_cpus=1, namespace="prod")


@ray.remote
class Counter: ...


counter = Counter.options(name="counter").remote()
ray.get(counter.__ray_ready__.remote())
for name, namespace in (("countr", None), ("counter", "test")):
    try:
        ray.get_actor(name, namespace=namespace)
    except ValueError as error:
        print(error)

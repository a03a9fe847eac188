"""An actor's constructor raises.

names: ActorDiedError
names: no such model: 'gpt-0'
"""

import miniray as ray

ray.init(num_cpus=2)


@ray.remote
class Model:
    def __init__(self, name):
        raise ValueError(f"no such model: {name!r}")

    def predict(self): ...


ray.get(Model.remote("gpt-0").predict.remote())

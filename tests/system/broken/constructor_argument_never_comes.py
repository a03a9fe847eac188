"""An actor's constructor takes the result of a task that cannot run.

names: waits for the arguments of its constructor
"""

import miniray as ray

ray.init(num_cpus=2)


@ray.remote(resources={"TPU": 1})
def weights(): ...


@ray.remote
class Model:
    def __init__(self, weights): ...


model = Model.options(name="model").remote(weights.remote())
print("why: model", flush=True)
input()

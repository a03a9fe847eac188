r"""A slip in the name of a resource that the session does have.

names: does not have 'acelerator' \(asked 1\).*was 'accelerator' meant\?
"""

import miniray as ray

ray.init(num_cpus=1, resources={"accelerator": 2})


@ray.remote(resources={"acelerator": 1})
class Model:
    def ready(self): ...


model = Model.remote()
print("why:", model.ready.remote().hex(), flush=True)
input()

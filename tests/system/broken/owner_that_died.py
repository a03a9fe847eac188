"""The process that put an object has ended.

names: OwnerDiedError
names: its owner is gone
"""

import miniray as ray

ray.init(num_cpus=2)


@ray.remote
class Producer:
    def put(self):
        return [ray.put(b"x" * 200_000)]


producer = Producer.remote()
(ref,) = ray.get(producer.put.remote())
ray.kill(producer)
try:
    while True:
        ray.get(producer.put.remote())
except ray.exceptions.RayActorError:
    pass
while True:     # until its copy here is freed, too
    ray.get(ref)

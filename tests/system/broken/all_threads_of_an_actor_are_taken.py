"""More calls than the actor has threads.

names: it is queued here behind
names: Pool.quick was sent to its actor
"""

import time

import miniray as ray

ray.init(num_cpus=2)


@ray.remote(max_concurrency=2)
class Pool:
    def slow(self):
        time.sleep(600)

    def quick(self): ...


pool = Pool.remote()
for _ in range(2):
    pool.slow.remote()


ref = pool.quick.remote()
print("why:", ref.hex(), flush=True)
input()

"""A call waits behind a long one of the same actor.

names: it is queued here behind 0 others, and while slow .* runs
names: raise max_concurrency
"""

import time

import miniray as ray

ray.init(num_cpus=2)


@ray.remote
class Single:
    def slow(self):
        time.sleep(600)

    def quick(self): ...


single = Single.remote()
single.slow.remote()
ref = single.quick.remote()
print("why:", ref.hex(), flush=True)
input()

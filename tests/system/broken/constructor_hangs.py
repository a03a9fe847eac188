r"""An actor's constructor never returns.

names: runs its constructor since
names: Stuck.__init__ .* runs here.* at .*constructor_hangs.py:\d+ in __init__
"""

import time

import miniray as ray

ray.init(num_cpus=2)


@ray.remote
class Stuck:
    def __init__(self):
        time.sleep(600)

    def call(self): ...


stuck = Stuck.remote()
ref = stuck.call.remote()
print("why:", ref.hex(), flush=True)
input()

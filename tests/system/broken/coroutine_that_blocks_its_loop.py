"""An asyncio actor sleeps without giving way.

names: in blocks
names: blocks .* runs here
"""

import time

import miniray as ray

ray.init(num_cpus=2)


@ray.remote
class Loop:
    async def blocks(self):
        time.sleep(600)  # noqa: ASYNC251


loop = Loop.remote()
ref = loop.blocks.remote()
print("why:", ref.hex(), flush=True)
input()

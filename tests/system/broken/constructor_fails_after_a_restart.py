"""A constructor that succeeds once: the second life of the actor ends in it.

names: ActorDiedError
names: RuntimeError: somebody was here
"""

import os
import tempfile

import miniray as ray

ray.init(num_cpus=1)


@ray.remote(max_restarts=3, max_task_retries=3)
class Once:
    def __init__(self, path):
        if os.path.exists(path):
            raise RuntimeError("somebody was here")
        open(path, "w").close()

    def leave(self):
        os._exit(1)


with tempfile.TemporaryDirectory() as folder:
    ray.get(Once.remote(f"{folder}/mark").leave.remote())

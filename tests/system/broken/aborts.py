"""Native code gives up.

names: SIGABRT
"""

import os

import miniray as ray

ray.init(num_cpus=2)


@ray.remote(max_retries=0)
def give_up():
    os.abort()


ray.get(give_up.remote())

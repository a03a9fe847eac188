r"""A task calls sys.exit.

names: user code called sys.exit\(5\)
"""

import sys

import miniray as ray

ray.init(num_cpus=2)


@ray.remote(max_retries=0)
def leave():
    sys.exit(5)


ray.get(leave.remote())

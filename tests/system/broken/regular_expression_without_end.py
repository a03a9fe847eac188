"""Native code never gives up the interpreter lock.

names: does not give up its interpreter lock
"""

import re

import miniray as ray

ray.init(num_cpus=2)


@ray.remote
def match():
    return re.match(r"(a+)+$", "a" * 100 + "b")


ref = match.remote()
print("why:", ref.hex(), flush=True)
input()

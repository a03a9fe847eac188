"""A task raises.

names: ZeroDivisionError: division by zero
names: in divide
"""

import miniray as ray

ray.init(num_cpus=2)


@ray.remote
def divide(number):
    return number / 0


ray.get(divide.remote(1))

"""A task takes the result of one that raised.

names: ZeroDivisionError: division by zero
names: in divide
"""

import miniray as ray

ray.init(num_cpus=2)


@ray.remote
def divide(number):
    return number / 0


@ray.remote
def double(number):
    return 2 * number


ray.get(double.remote(divide.remote(1)))

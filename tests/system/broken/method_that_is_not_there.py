"""A method that the actor does not have.

names: AttributeError
names: substract
"""

import miniray as ray

ray.init(num_cpus=2)


@ray.remote
class Calculator:
    def subtract(self, a, b):
        return a - b


Calculator.remote().substract.remote(2, 1)

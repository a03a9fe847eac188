"""A task imports what is not installed.

names: ModuleNotFoundError: No module named 'no_such_module_here'
"""

import miniray as ray

ray.init(num_cpus=2)


@ray.remote
def load():
    import no_such_module_here

    return no_such_module_here


ray.get(load.remote())

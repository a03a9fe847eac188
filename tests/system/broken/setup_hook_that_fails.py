"""The hook that prepares every worker raises.

names: no weather today
"""

import miniray as ray


def hook():
    raise RuntimeError("no weather today")


ray.init(num_cpus=2, runtime_env={"worker_process_setup_hook": hook})


@ray.remote
def f(): ...


ray.get(f.remote())

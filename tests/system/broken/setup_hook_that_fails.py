"""The hook that prepares every worker raises.

names: no weather today
"""

import miniray as ray

ray.init(num_cpus=2)


def hook():
    raise RuntimeError("no weather today")


@ray.remote(runtime_env={"worker_process_setup_hook": hook})
def f(): ...


ray.get(f.remote())

r"""A label selector that matches no node.

names: no live node has labels where zone in \(north\)
"""

import miniray as ray

ray.init(num_cpus=2)


@ray.remote(label_selector={"zone": "north"})
def local(): ...


ref = local.remote()
print("why:", ref.hex(), flush=True)
input()

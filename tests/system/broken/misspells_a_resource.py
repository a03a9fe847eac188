r"""Asks for a resource whose name is misspelt.

names: 'lisence' \(asked 1\)
names: license: 1
"""

import miniray as ray

ray.init(num_cpus=2, resources={"license": 1})


@ray.remote(resources={"lisence": 1})
def simulate(): ...


ref = simulate.remote()
print("why:", ref.task_id().hex(), flush=True)
input()

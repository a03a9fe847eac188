"""A runtime environment with a directory that does not exist.

names: /no/such/directory
"""

import miniray as ray

ray.init(num_cpus=2, runtime_env={"working_dir": "/no/such/directory"})

"""Joins a cluster that does not exist.

names: 127.0.0.1:1\b
"""

import miniray as ray

ray.init(address="127.0.0.1:1")

"""Joins a cluster that does not exist.

names: no node of a cluster at 127.0.0.1:1
"""

import miniray as ray

ray.init(address="127.0.0.1:1")

"""The workloads of `miniray microbenchmark`, on any engine with Ray's API.

The package needs nothing but that engine and numpy and imports nothing from around it, so that
another interpreter (one that has Ray) can run it; see `__main__`.
"""

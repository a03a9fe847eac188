"""`multiprocessing.Pool` whose processes are actors anywhere in the cluster."""

from multiprocessing import JoinableQueue, TimeoutError

from miniray.util.multiprocessing.pool import Pool

__all__ = ["JoinableQueue", "Pool", "TimeoutError"]

"""Recursion without an end through native code: the process runs out of stack.

names: SIGSEGV
names: task sink [0-9a-f]{12}, node
names: Fatal Python error
names: in deeper
"""

import sys

import miniray as ray

ray.init(num_cpus=1)


def deeper(number):
    return sorted([number], key=deeper)


@ray.remote(max_retries=0)
def sink():
    sys.setrecursionlimit(10**9)
    return deeper(0)


ray.get(sink.remote())

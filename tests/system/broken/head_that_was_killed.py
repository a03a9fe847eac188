"""The head of a cluster is killed and does not come back; the driver asks for a new actor.

names: head .* (not answered|away|cannot be reached)
"""

import os
import signal

import miniray as ray
from miniray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
ray.init(cluster.address)


@ray.remote
class Actor:
    def ping(self): ...


ray.get(Actor.remote().ping.remote())
os.kill(cluster._head_pid, signal.SIGKILL)
try:
    ray.get(Actor.remote().ping.remote(), timeout=8)
except ray.exceptions.GetTimeoutError as error:
    print(error)
ray.shutdown()
cluster.shutdown()

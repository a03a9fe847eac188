"""Two actors call each other and wait.

names: this is a cycle, and none of them can ever end: Peer.ask
"""

import miniray as ray

ray.init(num_cpus=2)


@ray.remote
class Peer:
    def ask(self, others):
        return ray.get(others[0].ask.remote(others[1:])) if others else 1


first, second = Peer.remote(), Peer.remote()
ref = first.ask.remote([second, first])
print("why:", ref.hex(), flush=True)
input()

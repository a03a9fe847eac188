r"""More calls than max_pending_calls allows.

names: PendingCallsLimitExceeded
names: more than 2 calls of the actor are pending \(max_pending_calls\)
"""

import time

import miniray as ray

ray.init(num_cpus=2)


@ray.remote(max_pending_calls=2)
class Slow:
    def work(self):
        time.sleep(600)


slow = Slow.remote()
for _ in range(10):
    slow.work.remote()

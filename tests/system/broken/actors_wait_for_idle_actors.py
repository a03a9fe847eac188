"""Idle actors keep the CPUs that further actors of their class need.

names: CPU: held by 2 x actor Holder, until they end
names: what helps: .*ray.kill
"""

import miniray as ray

ray.init(num_cpus=2)


@ray.remote(num_cpus=1)
class Holder:
    def ready(self): ...


holders = [Holder.remote() for _ in range(2)]
ray.get([holder.ready.remote() for holder in holders])
holders.append(Holder.remote())
print("why:", holders[2].ready.remote().hex(), flush=True)
input()

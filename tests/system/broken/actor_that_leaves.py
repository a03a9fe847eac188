r"""An actor ends itself; somebody calls it afterwards.

names: exit_actor\(\) was called
"""

import miniray as ray

ray.init(num_cpus=2)


@ray.remote
class Quitter:
    def quit(self):
        ray.actor.exit_actor()

    def call(self): ...


quitter = Quitter.remote()
try:
    ray.get(quitter.quit.remote())


except ray.exceptions.RayActorError:
    pass


ray.get(quitter.call.remote())

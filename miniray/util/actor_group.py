"""A group of equal actors whose methods are called on all of them at once, as in Ray, where it is
deprecated: `ray.util.multiprocessing` spreads stateless work, and plain actors in a list do the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from miniray import api
from miniray.actor import ActorHandle
from miniray.decorator import remote
from miniray.ids import ObjectRef
from miniray.util.annotations import Deprecated


class Member(NamedTuple):
    """One actor, and what its `get_actor_metadata` said when it began (None: it has no such method)."""

    actor: ActorHandle[Any]
    metadata: Any


class GroupMethod:
    """`group.method`: `remote` calls it on every actor of the group."""

    def __init__(self, group: ActorGroup, name: str) -> None:
        self._group = group
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"The methods of an ActorGroup cannot be called directly: use {self._name}.remote() "
            f"instead of {self._name}()."
        )

    def remote(self, *args: Any, **kwargs: Any) -> list[ObjectRef[Any]]:
        """The references of the results, in the order of the actors."""
        return [getattr(member.actor, self._name).remote(*args, **kwargs) for member in self._group.actors]


@Deprecated(
    message="For stateless work use ray.util.multiprocessing; for stateful work keep actors in a list.",
    warning=True,
)
class ActorGroup:
    """`num_actors` actors of one class, each with the given resources and constructor arguments.

    ValueError for fewer than one actor and for negative resources. After `shutdown` every method is
    RuntimeError until `start`.
    """

    def __init__(
        self,
        actor_cls: type,
        num_actors: int = 1,
        num_cpus_per_actor: float = 1,
        num_gpus_per_actor: float = 0,
        resources_per_actor: Mapping[str, float] | None = None,
        init_args: tuple[Any, ...] | None = None,
        init_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if num_actors <= 0:
            raise ValueError(f"num_actors must be at least 1, got {num_actors}")
        if num_cpus_per_actor < 0 or num_gpus_per_actor < 0:
            raise ValueError(
                f"num_cpus_per_actor ({num_cpus_per_actor}) and num_gpus_per_actor "
                f"({num_gpus_per_actor}) must not be negative"
            )
        self.actors: list[Member] = []
        self.num_actors = num_actors
        self._args = init_args or ()
        self._kwargs = dict(init_kwargs or {})
        self._actor_class: Any = remote(
            num_cpus=num_cpus_per_actor,
            num_gpus=num_gpus_per_actor,
            resources=dict(resources_per_actor or {}),
        )(actor_cls)
        self.start()

    def __getattr__(self, name: str) -> GroupMethod:
        if name.startswith("__") or "actors" not in vars(self):
            raise AttributeError(name)  # copying and pickling ask for such
        if not self.actors:
            raise RuntimeError("This ActorGroup was shut down: call start() before using it again.")
        return GroupMethod(self, name)

    def __len__(self) -> int:
        return len(self.actors)

    def __getitem__(self, index: int) -> Member:
        return self.actors[index]

    @property
    def actor_metadata(self) -> list[Any]:
        """What each actor's `get_actor_metadata` said, in the order of the actors."""
        return [member.metadata for member in self.actors]

    def start(self) -> None:
        """Begin all actors. RuntimeError while there are any."""
        if self.actors:
            raise RuntimeError("The actors of this ActorGroup run already: call shutdown() first.")
        self.add_actors(self.num_actors)

    def add_actors(self, num_actors: int) -> None:
        """So many actors more."""
        actors = [self._actor_class.remote(*self._args, **self._kwargs) for _ in range(num_actors)]
        described = [hasattr(actor, "get_actor_metadata") for actor in actors]
        answers = iter(
            api.get([actor.get_actor_metadata.remote() for actor, has in zip(actors, described) if has])
        )
        for actor, has in zip(actors, described):
            self.actors.append(Member(actor, next(answers) if has else None))

    def remove_actors(self, actor_indexes: Collection[int]) -> None:
        """Let go of the actors at these places; they end when nobody else holds them."""
        self.actors = [member for i, member in enumerate(self.actors) if i not in actor_indexes]

    def shutdown(self, patience_s: float = 5) -> None:
        """End all actors, killing them when what they were asked to do takes over `patience_s`."""
        members, self.actors = self.actors, []
        if patience_s > 0:
            ended = [member.actor.__ray_terminate__.remote() for member in members]
            _, late = api.wait(ended, num_returns=len(ended), timeout=patience_s) if ended else ([], [])
            if not late:
                return
        for member in members:
            api.kill(member.actor)

"""What tasks leave of this node for actors that wait for it.

The GCS offers an actor only to nodes whose heartbeats show room. Where tasks wait in the raylet's
queues, none ever does: each CPU that comes free, or that a blocked task lends, goes to the next of
them, though they may all be waiting for that actor. So the GCS tells a busy node which actor waits
(`ActorWaits`, again and again while that is so), and a node that has to refuse an actor remembers
it itself. Either is a *claim*: as soon as what the actor asks for is free it is kept for it, until
the GCS comes with it or the claim has lapsed. What is free in part is kept only after `PATIENCE_S`,
and only if tasks hold the rest: actors give nothing back. Leases that go from task to task without
a pause are asked back (`core.shares`). Work of higher priority knows no claims.

Pure; part of `core.leases`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from miniray.core import resources
from miniray.core.resources import Resources

CLAIM_LASTS_S = 3.0
"""Some heartbeats long, so that the GCS hears of what came free."""

PATIENCE_S = 5.0
"""An actor that needs more than any one task gives back waits so long for them to meet by chance."""


@dataclass(slots=True)
class Claim:
    """What one actor waits for."""

    demand: Resources
    priority: int
    since: float
    until: float


@dataclass(slots=True)
class Claims:
    """See the module head."""

    by_actor: dict[bytes, Claim] = field(default_factory=dict)

    def made(self, now: float, actor_id: bytes, demand: Resources, priority: int) -> None:
        """The actor waits for this node, or still does."""
        known = self.by_actor.get(actor_id)
        since = known.since if known is not None else now
        self.by_actor[actor_id] = Claim(demand, priority, since, now + CLAIM_LASTS_S)

    def settled(self, actor_id: bytes) -> None:
        """The actor has what it asked for."""
        self.by_actor.pop(actor_id, None)

    def standing(self, now: float) -> list[Claim]:
        """Those that have not lapsed, the oldest first."""
        for actor_id in [one for one, claim in self.by_actor.items() if claim.until <= now]:
            del self.by_actor[actor_id]
        return sorted(self.by_actor.values(), key=lambda claim: claim.since)

    def kept(self, now: float, available: Resources, returnable: Resources) -> list[Claim]:
        """The claims that count now. `returnable`: what is free, or held by tasks."""
        return [
            claim for claim in self.standing(now)
            if resources.fits(claim.demand, available)
            or (now - claim.since > PATIENCE_S and resources.fits(claim.demand, returnable))
        ]  # fmt: skip


def leaves_room(kept: list[Claim], priority: int, demand: Resources, available: Resources) -> bool:
    """Whether a task's demand fits beside what is kept from work of its priority."""
    rest = dict(available)
    for claim in kept:
        if claim.priority >= priority:
            resources.subtract(rest, claim.demand)
    return resources.fits(demand, rest)

"""A worker's owner machine driven by hand: names instead of ids, effects as lines of text.

The tests read like a transcript: say what happens (`submit`, `grant`, `reply`, …), then compare
`rig.effects()` with the lines one expects. After each step every invariant is checked.
"""

from __future__ import annotations

from typing import Any

from miniray.core import ids
from miniray.core.calls import ActorClient, ActorInDoubt, HandleGone
from miniray.core.directory import FAILED, INLINE, STORED, Address, ObjectEntry
from miniray.core.owner import Ask, Owner, Result
from miniray.core.ownership import BorrowAdd, BorrowDrop, Free, Watch
from miniray.core.submission import Lane, LeaseDone, LeaseUnwanted, LeaseWanted, Paused
from miniray.core.subscribers import News
from miniray.core.tasks import UNKNOWN_COST_US, MethodTemplate, TaskRecord, TaskTemplate

JOB = ids.job_id(1)


def address(node: int, worker: int) -> Address:
    """Worker number `worker` of node number `node`."""
    return bytes([node]) * ids.NODE_ID_SIZE, bytes([worker]) * ids.WORKER_ID_SIZE


ME = address(1, 100)
W1, W2, W3 = address(1, 1), address(1, 2), address(2, 3)
PLACES = {ME: "me", W1: "w1", W2: "w2", W3: "w3"}
NODES = {ME[0]: "n1", W3[0]: "n2", bytes([3]) * ids.NODE_ID_SIZE: "n3"}


class Rig:
    """One `Owner` (at `ME` unless told otherwise) with the clock in `now`."""

    def __init__(self, me: Address = ME) -> None:
        self.owner = Owner(me)
        self.now = 0.0
        self.templates: dict[str, TaskTemplate] = {}
        self.records: dict[str, TaskRecord] = {}
        self.entries: dict[str, ObjectEntry] = {}
        self.actors: dict[str, ActorClient] = {}
        self.wanted: list[LeaseWanted] = []
        self._names: dict[bytes, str] = {}
        self._lines: list[str] = []
        self._count = 0

    # ---- templates, lanes, tasks

    def template(self, name: str, cost_us: float = UNKNOWN_COST_US) -> TaskTemplate:
        """The remote function `name`; `cost_us` as if it had run before."""
        template = self.templates.get(name)
        if template is None:
            template = self.templates[name] = TaskTemplate(lambda: None, name, cost_us=cost_us)
        return template

    def lane(self, key: str = "cpu") -> Lane:
        return self.owner.submission.lane(key, None)

    def submit(self, name: str, *arguments: str, function: str = "f", cost_us: float = UNKNOWN_COST_US,
               nested: tuple[str, ...] = (), retries: int = 0, lane: str = "cpu", actor: str = "",
               returns: int = 1) -> TaskRecord:
        """Submit task `name`; its result is object `name` (`name.2`, … for further returns)."""
        self._count += 1
        client = self.actors[actor] if actor else None
        tid = ids.task_id(self._count.to_bytes(8, "little"), JOB, client.id if client is not None else None)
        direct = [self.entries[argument] for argument in arguments]
        held = direct + [self.entries[argument] for argument in nested]
        template: Any = MethodTemplate(function) if actor else self.template(function, cost_us)
        entries = []
        for index in range(1, returns + 1):
            entry = self.owner.directory.own(ids.object_id(tid, index))
            entry.local = 1
            entries.append(self._name(name if index == 1 else f"{name}.{index}", entry))
        record = TaskRecord(tid, template, b"", direct or None, held or None, entries, retries,
                            None if client else self.lane(lane), client, b"", self.now)
        for entry in entries:
            entry.task = record
        record.name = name
        self.records[name] = record
        self.owner.submitted(self.now, record)
        self._turn()
        return record

    def actor(self, name: str, owned: bool = True, **options: Any) -> ActorClient:
        """A handle of actor `name`, not known to be alive."""
        self._count += 1
        client = self.owner.calls.client(ids.actor_id(self._count.to_bytes(12, "little"), JOB))
        client.owned = owned
        for option, value in options.items():
            setattr(client, option, value)
        self.actors[name] = client
        self._names[client.id] = name
        return client

    def put(self, name: str, value: Any = b"1", node: bytes = b"") -> ObjectEntry:
        """An object of ours with a value, in the store of `node` if given."""
        self._count += 1
        oid = ids.object_id(ids.task_id(bytes(8), JOB), ids.PUT_INDEX + self._count)
        entry = self._name(name, self.owner.directory.own(oid))
        entry.local = 1
        if node:
            self.owner.settle(self.now, entry, Result(STORED, None, 1000), (node, W1[1]))
        else:
            self.owner.settle(self.now, entry, Result(INLINE, value, 1), ME)
        return entry

    def borrowed(self, name: str, owner: Address) -> ObjectEntry:
        """A reference to somebody else's object arrives here, in a message or a value."""
        self._count += 1
        oid = ids.object_id(ids.task_id(bytes(8), JOB), self._count)
        entry = self._name(name, self.owner.directory.know(oid, owner))
        entry.local += 1
        return entry

    def _name(self, name: str, entry: ObjectEntry) -> ObjectEntry:
        self.entries[name] = entry
        self._names[entry.id] = name
        return entry

    # ---- what happens

    def grant(self, request: int, worker: Address = W1, lease: int = 0) -> None:
        """The raylet grants lease `lease` (numbered like its request unless told otherwise)."""
        self.owner.submission.lease_granted(self.now, request, lease or request, worker)
        self._turn()

    def reply(self, name: str, *results: Result, spent_us: float = 100.0,
              retained: tuple[str, ...] = (), again: bool = False) -> None:
        """The worker that has task `name` answers."""
        record = self.records[name]
        answers = list(results) or [inline()] * len(record.returns)
        kept = [self.entries[one].id for one in retained]
        self.owner.replied(self.now, record.remote, record.call, spent_us, answers, kept, again)
        self._turn()

    def bounce(self, *names: str) -> None:
        """A worker sends these tasks back unstarted."""
        records = [self.records[name] for name in names]
        self.owner.submission.bounced(self.now, records[0].remote, [record.call for record in records])
        self._turn()

    def dies(self, worker: Address, error: str = "died", **how: Any) -> None:
        self.owner.remote_gone(self.now, worker, error, **how)
        self._turn()

    def news(self, actor: str, state: str, worker: Address | None = None, restarts: int = 0,
             cause: str = "cause") -> None:
        """The GCS says what became of an actor."""
        self.owner.actor_updated(self.now, self.actors[actor].id, state, worker, restarts, cause)
        self._turn()

    def drop(self, name: str) -> None:
        """The last ObjectRef of object `name` in this process dies."""
        self.entries[name].local -= 1
        self.owner.ownership.released([self.entries[name]])
        self._turn()

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.owner.tick(self.now)
        self._turn()

    # ---- what comes of it

    def pushes(self) -> list[str]:
        """The effects since the last look, but only tasks and calls that were sent."""
        return [line for line in self.effects() if line.startswith("push")]

    def effects(self) -> list[str]:
        """The effects since the last look, as text."""
        self._turn()
        lines, self._lines = self._lines, []
        return lines

    def _turn(self) -> None:
        """What a shell does after each stimulus: carry out the effects. And check the machine."""
        self.wanted.extend(effect for effect in self.owner.out if isinstance(effect, LeaseWanted))
        self._lines.extend(self._render(effect) for effect in self.owner.out)
        self.owner.out.clear()
        self.owner.check()

    def _render(self, effect: Any) -> str:
        if isinstance(effect, TaskRecord):
            return f"push {effect.name} to {PLACES[effect.remote.address]}"
        if isinstance(effect, tuple):
            return f"wake {effect[0]} for {'its owner' if effect[1] is None else self._names[effect[1].id]}"
        if isinstance(effect, LeaseWanted):
            return f"want lease {effect.request_id} for {effect.lane.key}"
        if isinstance(effect, LeaseUnwanted):
            return f"withdraw {effect.request_id}"
        if isinstance(effect, Paused):
            return f"pause for {effect.until - self.now:.2f} s"
        if isinstance(effect, LeaseDone):
            return f"return lease {effect.lease_id}"
        if isinstance(effect, Free):
            places = " ".join(NODES[node] for node in effect.nodes)
            return f"free {self._names[effect.object_id]} on {places}"
        if isinstance(effect, BorrowAdd):
            what = self._names[effect.object_id]
            return f"tell {PLACES[effect.owner]} that {PLACES[effect.borrower]} holds {what}"
        if isinstance(effect, BorrowDrop):
            return f"tell {PLACES[effect.owner]} we dropped {self._names[effect.object_id]}"
        if isinstance(effect, Watch):
            return f"watch {PLACES[effect.borrower]}"
        if isinstance(effect, News):
            return self._news(effect)
        if isinstance(effect, Ask):
            return f"ask for {self._names[effect.entry.id]}"
        if isinstance(effect, ActorInDoubt):
            return f"what became of {self._names[effect.actor_id]}?"
        assert isinstance(effect, HandleGone), effect
        return f"handle of {self._names[effect.actor_id]} gone"

    def _news(self, news: News) -> str:
        def named(nodes: Any) -> str:
            return " ".join(NODES[node] for node in nodes)

        what = [f"{kind} {named(nodes)}" for kind, nodes in (("at", news.added), ("not at", news.removed))
                if nodes]
        what += ["nowhere"] * news.is_nowhere + [f"over: {news.over}"] * bool(news.over)
        return f"tell {named(news.subscribers)} of {self._names[news.object_id]}: {', '.join(what)}"

    def value(self, name: str) -> Any:
        """("value" | "stored" | "error", …) of an object, None while it is pending."""
        entry = self.entries[name]
        kinds = {INLINE: "value", STORED: "stored", FAILED: "error"}
        return (kinds[entry.state], entry.value) if entry.state in kinds else None

    def knows(self, name: str) -> bool:
        """Whether the object is still in the books."""
        return self.owner.directory.find(self.entries[name].id) is not None


def inline(value: Any = b"1", contents: tuple[Any, ...] = ()) -> Result:
    return Result(INLINE, value, 1, contents)


def stored(size: int = 1000) -> Result:
    return Result(STORED, None, size)


def failed(error: Any = "raised", contents: tuple[Any, ...] = ()) -> Result:
    return Result(FAILED, error, 1, contents)

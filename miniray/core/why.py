"""Why a task or object of this process is not done yet, or is still held: the owner's side.

The owner of a task is the only one who knows all of it: what it waits for, where it was sent,
which attempts it has had. `chain` puts that into links, each the reason for the one before::

    task g waits for argument a1b2…  ◀─  task f runs on worker 77… since 4.2 s (attempt 2)

`core.explain` is the same for what the GCS knows. Pure; reads the machines of `core.owner`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from miniray._proto import gcs_pb2 as gcs

from . import ids
from .calls import ALIVE, DEAD
from .directory import FAILED, INLINE, STATE_NAMES, STORED, Address, ObjectEntry
from .tasks import CANCELLED, PUSHED, TaskRecord

if TYPE_CHECKING:
    from .calls import ActorClient
    from .owner import Owner
    from .submission import Lane

LINKS = 12
"""Links of a chain at most: a long chain of tasks is waited for from its end."""


def chain(owner: Owner, entry: ObjectEntry, now: float | None = None) -> list[str]:
    """Why the object is not ready; `now` adds how long it has been so."""
    return trace(owner, entry, now)[0]


def trace(owner: Owner, entry: ObjectEntry, now: float | None = None) -> tuple[list[str], bytes]:
    """The chain as far as this process knows it, and what another process knows more of: a task that
    was sent to a worker, an actor that is not alive, a placement group, an object of another owner; b"" for
    nothing."""
    links: list[str] = []
    seen: dict[bytes, None] = {}
    while len(links) < LINKS:
        if entry.ready:
            return [*links, "it is ready"], b""
        record: TaskRecord | None = entry.task
        if record is None:
            return [*links, _foreign(owner, entry)], entry.id if entry.owner is not None else b""
        blocking = next((one for one in record.dependencies or () if not one.ready), None)
        if blocking is None or not record.unresolved or blocking.id in seen:
            return links + task_links(owner, record, now), _elsewhere(record)
        seen[blocking.id] = None
        links.append(f"task {record.label} waits for argument {blocking.id.hex()}")
        entry = blocking
    return [*links, "and so on"], entry.id


def silent_head(seconds: float, daemon: int = 0) -> str:
    """The head has not answered a question for so long; `daemon` is the pid of a local session's."""
    if daemon:
        return (f"this session's daemon (pid {daemon}) has not answered for {seconds:.1f} s: "
                "the machine is overloaded, or the daemon is stopped")
    return f"the head has not answered for {seconds:.1f} s: it is away, cut off or overloaded"


def _elsewhere(record: TaskRecord) -> bytes:
    """Whom to ask further about a task whose arguments are there."""
    client: ActorClient | None = record.client
    if record.state == PUSHED:
        return record.id
    if client is None:
        return _group_of(record)
    if client.state == DEAD:
        return b""
    if client.state != ALIVE:
        return client.id
    head = client.queue[0] if client.queue else record
    missing = next((one for one in head.dependencies or () if not one.ready), None)
    return missing.id if missing is not None else b""


def _group_of(record: TaskRecord) -> bytes:
    """The placement group in which a task is to run: the head knows why it is not there."""
    strategy = getattr(record.template, "strategy", None)
    return strategy.bundle.placement_group_id if strategy is not None else b""


def _foreign(owner: Owner, entry: ObjectEntry) -> str:
    if entry.owner is None:
        return "nobody makes it"
    return f"its owner, worker {_short(entry.owner)}, has not answered yet"


def task_links(owner: Owner, record: TaskRecord, now: float | None = None) -> list[str]:
    """What a task whose arguments are there waits for, or where it runs."""
    name = f"task {record.label}" + (f" (attempt {record.attempt + 1})" if record.attempt else "")
    since = f" since {now - record.pushed_at:.1f} s" if now is not None and record.state == PUSHED else ""
    client: ActorClient | None = record.client
    if client is not None:
        return _call_links(client, record, name, since)
    if record.state == PUSHED:
        ahead = _ahead(record)
        if ahead:
            return [f"{name} is next on worker {_short(record.remote.address)}{since}",
                    f"behind {_count(ahead, 'task')} of this process"]
        return [f"{name} runs, or is next, on worker {_short(record.remote.address)} "
                f"of node {record.remote.address[0].hex()[:12]}{since}", *_pulled(record)]
    lane: Lane = record.lane
    links = [f"{name} waits for a worker"]
    if lane.reason:
        links.append(lane.reason)
    else:
        links.append(f"{len(lane.queue)} of its kind are queued, {len(lane.leases)} workers serve them")
    return links


def _call_links(client: ActorClient, record: TaskRecord, name: str, since: str) -> list[str]:
    if record.state == PUSHED:
        links = [f"{name} was sent to its actor and has not been answered{since}"]
        ahead = _ahead(record)
        return [*links, f"behind {_count(ahead, 'call')} of this process"] if ahead else links
    if client.state != "ALIVE":
        reason = f" ({client.reason})" if client.reason else ""
        return [f"{name} waits for its actor, which is {client.state}{reason}"]
    head = client.queue[0] if client.queue else record
    if head is record:
        return [f"{name} is about to be sent to its actor"]
    missing = next((one for one in head.dependencies or () if not one.ready), None)
    links = [f"{name} waits for an earlier call of this process, {head.label}"]
    return [*links, f"that waits for argument {missing.id.hex()}"] if missing is not None else links


def _pulled(record: TaskRecord) -> list[str]:
    """Arguments that are in other nodes' stores, as far as their owner has heard."""
    node = record.remote.address[0]
    return [f"its argument {one.id.hex()}, {one.size} bytes, is pulled there from node "
            f"{one.locations[0].hex()[:12]}"
            for one in record.dependencies or () if one.state == STORED and node not in one.locations]


def _ahead(record: TaskRecord) -> int:
    return sum(call < record.call for call in record.remote.inflight)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _short(address: Address) -> str:
    return address[1].hex()[:12]


def titled(entry: ObjectEntry) -> str:
    """An object, and the task that made it."""
    of_task = f", the result of {entry.task.label}," if entry.task is not None else ""
    return f"object {entry.id.hex()}{of_task}"


# ---- what holds an object


def holders(entry: ObjectEntry) -> list[str]:
    """Who keeps an object of this process alive."""
    links = []
    if entry.local > 0:
        links.append(f"held by {_count(entry.local, 'reference')} of this process")
    if entry.pins > 0:
        links.append(f"held by {_count(entry.pins, 'task')} in flight, or values with it inside")
    if entry.rare is not None:
        links += [f"held by worker {_short(address)} of node {address[0].hex()[:12]}"
                  for address in entry.rare.borrowers]
        if entry.rare.lineage:
            links.append(f"kept for {_count(entry.rare.lineage, 'finished task')} that may run again")
    return links


def _ready_links(owner: Owner, entry: ObjectEntry) -> tuple[str, list[str]]:
    size = f"{entry.size} bytes"
    if entry.state == STORED:
        nodes = ", ".join(node.hex()[:12] for node in entry.locations) or "no node"
        return f"is ready: {size} in the store of {nodes}", holders(entry)
    if entry.state == INLINE:
        return f"is ready: {size} in its owner's memory", holders(entry)
    if entry.state == FAILED:
        return "is an error", [*_failed(entry.task), *owner.words_of(entry.value)]
    return f"is {STATE_NAMES[entry.state]}", []


def _failed(record: TaskRecord | None) -> list[str]:
    """Which task an error is the result of; nothing of a borrowed object."""
    if record is None:
        return []
    outcome = "was cancelled" if record.state == CANCELLED else "failed"
    attempt = f" in attempt {record.attempt + 1}" if record.attempt else ""
    return [f"task {record.label} ({record.id.hex()[:12]}) {outcome}{attempt}"]


# ---- answers


def explain(owner: Owner, now: float, key: bytes) -> gcs.Explanation:
    """What this process knows of a task or object; `kind` is "" when that is nothing."""
    if len(key) == ids.OBJECT_ID_SIZE:
        return _object(owner, now, key)
    if len(key) == ids.TASK_ID_SIZE:
        return _task(owner, now, key)
    return gcs.Explanation()


def _object(owner: Owner, now: float, key: bytes) -> gcs.Explanation:
    entry = owner.directory.find(key)
    if entry is None:
        return gcs.Explanation()
    found = gcs.Explanation(kind="object", role="owner" if entry.owner is None else "holder")
    if entry.owner is not None and entry.state != FAILED:
        found.sentence = f"object {key.hex()} is owned by worker {_short(entry.owner)}"
        found.chain.extend(holders(entry))
    elif entry.ready:
        state, links = _ready_links(owner, entry)
        found.sentence = f"object {key.hex()} {state}"
        found.chain.extend(links)
    else:
        found.sentence = f"object {key.hex()} is not ready"
        links, found.next = trace(owner, entry, now)
        found.chain.extend(links)
        found.unsettled = True
        found.name = entry.task.label if entry.task is not None else ""
    found.story.extend(owner.story(key))
    return found


def _task(owner: Owner, now: float, key: bytes) -> gcs.Explanation:
    record = owner.record_of(key)
    if record is None:
        return gcs.Explanation()
    found = gcs.Explanation(kind="task", role="owner", unsettled=not record.done, name=record.label)
    name = f"task {record.label} ({key.hex()[:12]})"
    if record.done:
        outcome = "was cancelled" if record.state == CANCELLED else "has finished"
        failed = record.error is not None or any(entry.state == FAILED for entry in record.returns)
        found.sentence = f"{name} {'failed' if failed and record.state != CANCELLED else outcome}"
        found.chain.extend(owner.words_of(record.error))
    else:
        entry = next(iter(record.returns), None)
        found.sentence = f"{name} has not ended: it was submitted {now - record.submitted_at:.1f} s ago"
        if entry is not None:
            links, found.next = trace(owner, entry, now)
            found.chain.extend(links)
        else:
            found.chain.extend(task_links(owner, record, now))
    found.story.extend(owner.story(key))
    return found


def told(record: TaskRecord) -> list[str]:
    """The times that a record has by itself, as lines of its story."""
    lines = [f"{record.submitted_at:.3f} submitted"]
    if record.pushed_at:
        where = f" to worker {_short(record.remote.address)}" if record.remote is not None else ""
        lines.append(f"{record.pushed_at:.3f} sent{where}, attempt {record.attempt + 1}")
    if record.ended_at and record.done:
        lines.append(f"{record.ended_at:.3f} ended")
    return lines

"""The catalogue of situations: every answer to "why" that miniray gives, as data.

One entry is one situation: a key, the group it belongs to, how a link of a chain reads in it, and
what helps. Sentences travel as text, through failures, lease replies and the rows of the GCS, so a link
is recognised by its words: `recognise` finds the entry, `advice` what to do about a whole chain. The
words stand where the fact is known; a test makes every situation and demands that its sentence is
recognised as this one and no other (tests/core/test_situations.py), and that docs/explanations.md,
which `miniray why --catalogue` prints, is the present one.

In `says`, {name} stands for any text. Nothing here runs before somebody asks. Pure.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass

GROUPS = {
    "pending": "It has not begun",
    "slow": "It is on its way",
    "stuck": "It cannot go on by itself",
    "dead": "It has ended, or will never be",
    "held": "It is kept",
    "lost": "It is gone",
}


@dataclass(frozen=True, slots=True)
class Situation:
    """See the module head."""

    key: str
    says: str
    helps: str

    @property
    def group(self) -> str:
        """Which of `GROUPS`."""
        return self.key.partition(".")[0]


CATALOGUE: dict[str, Situation] = {}


def _add(group: str, *entries: tuple[str, str, str]) -> None:
    for name, says, helps in entries:
        key = f"{group}.{name}"
        assert group in GROUPS and key not in CATALOGUE, key
        CATALOGUE[key] = Situation(key, says, helps)


_add("pending",
    ("no-such-resource",
     "{nobody} '{name}' (asked {amount}): {whose} resources are {figures}",
     "start a node that has it (`miniray start --address … --resources NAME=AMOUNT`), or ask for less"),
    ("too-large",
     "no node has {amount} {name}: the most is {most} on {node}",
     "ask for at most what the named node has, or add a larger node"),
    ("not-together",
     "no single node has {amounts} together: the cluster's resources are {figures}",
     "ask for less of one of them, or split the work"),
    ("busy",
     "waiting for {name}: {amount} needed, at most {free} free on {node}",
     "it begins when others end or give back what they hold; `miniray status` shows who waits for what"),
    ("busy-together",
     "waiting for {amounts} together on {nodes}",
     "it begins when one node has all of it free at the same time"),
    ("held-by",
     "waits for {amounts} on node {node}, which has {free} free{holders}",
     "it begins when one of the named tasks or actors ends; actors hold their resources until they end"),
    ("kept",
     "{names}: held by {holders}, until they end",
     "actors and groups hold their resources also while they are idle: end those that are not needed "
     "(`ray.kill`, `remove_placement_group`), or add a node"),
    ("no-node",
     "the cluster has no live node",
     "start a node (`miniray start --address …`)"),
    ("label",
     "no live node has labels where {wanted}{offered}",
     "give a node such labels (`--labels`), or loosen the selector"),
    ("affinity-busy",
     "node {node}, the only one allowed: waiting for {what}",
     "use soft=True, so that others may serve it"),
    ("group-room",
     "placement group{name} ({id}) waits for room",
     "the next links say what each bundle lacks; remove groups that are not needed any more"),
    ("group-rescheduled",
     "placement group{name} ({id}) has lost a node and waits for room elsewhere",
     "add a node, or wait until there is room for the lost bundles"),
    ("group-placed",
     "placement group{name} ({id}) is being placed",
     "wait: nodes are reserving its bundles"),
    ("bundle",
     "bundle {index}: {reason}",
     "make the bundle smaller, or add a node it fits on"),
    ("bundle-placed",
     "bundle {index}, {amounts}: on {node}",
     "wait, or see the link before: the bundle has its place"),
    ("bundle-busy",
     "waiting for {name} in {bundle} {id}: {amount} needed, at most {free} free{holders}",
     "others of the group hold it: the group's own tasks and actors must end first, or get a larger "
     "bundle"),
    ("bundle-small",
     "{bundle} {id} has {only} {name} (asked {amount})",
     "ask for what the bundle holds, or make the group with a larger one"),
    ("group-absent",
     "placement group {id} has no bundle on a live node",
     "wait until the group is placed (`pg.ready()`); if it was removed, the task fails soon"),
    ("argument",
     "task {name} waits for argument {id}",
     "the next link says what becomes of the argument"),
    ("borrowed",
     "its owner, worker {id}, has not answered yet",
     "the next links come from its owner"),
    ("worker",
     "task {name} waits for a worker",
     "the next link says why none was given"),
    ("queued",
     "{count} of its kind are queued, {workers} workers serve them",
     "give the task fewer resources, or the cluster more, so that more of them run at a time"),
    ("starting",
     "a worker process is starting on node {node}",
     "wait: it takes some milliseconds to seconds"),
    ("environment",
     "a worker process, in its runtime_env {fields}, is starting on node {node}",
     "a new environment is downloaded and installed once per node; logs/environment-*.log of the session "
     "has the tools' output, `setup_timeout_seconds` bounds it"),
    ("actor",
     "task {name} waits for its actor, which is {state}",
     "the next link says why the actor is not alive"),
    ("actor-pending",
     "actor {title} is not alive yet",
     "the next link says what it waits for"),
    ("actor-arguments",
     "actor {title} waits for the arguments of its constructor",
     "ask why the objects that its constructor takes are not ready"),
    ("actor-creating",
     "it is being created on {node}: its process starts, or its constructor runs",
     "the next links come from the node; `miniray stack` shows the line the constructor is at"),
    ("actor-process",
     "node {node} starts a worker process for it{environment}",
     "wait, or look at its runtime_env"),
    ("actor-constructor",
     "node {node} runs its constructor since {seconds} s, in process {pid}",
     "`miniray stack` shows the line it is at"),
    ("actor-restarting",
     "actor {title} is restarting",
     "the next links say after what, and what it waits for"),
    ("actor-pause",
     "it died young several times: there is a pause before each restart",
     "its story says how it died: mend that"),
    ("earlier-call",
     "task {name} waits for an earlier call of this process, {earlier}",
     "calls of one caller begin in order: the earlier one's argument must come first; "
     "`allow_out_of_order_execution=True` lifts that"),
    ("max-pending",
     "The task {id} could not be submitted because more than {limit} calls of the actor are pending{more}",
     "wait for some of the calls, or raise max_pending_calls"),
    ("draining",
     "{node} is leaving: no new work goes there",
     "add another node before this one has left"),
)  # fmt: skip

_add("slow",
    ("runs",
     "task {name} runs, or is next, on worker {id} of node {node}{since}",
     "`miniray stack` shows its line"),
    ("executes",
     "{name} ({id}) runs here{since}",
     "`miniray stack` shows all its threads"),
    ("behind",
     "behind {count} {calls} of this process",
     "they were submitted first, and run one after another"),
    ("unread",
     "{name} ({id}) runs here{since}, and waits for its consumer: {count} items ahead, {limit} allowed{at}",
     "take the items of the generator, or allow more ahead (`_generator_backpressure_num_objects`)"),
    ("next",
     "task {name} is next on worker {id}{since}",
     "it begins when those before it have ended"),
    ("sent",
     "task {name} was sent to its actor and has not been answered{since}",
     "the next links come from the actor"),
    ("concurrency",
     "it is queued here behind {count} others{running}",
     "calls of one actor run one at a time: raise max_concurrency, make the method async, or use more "
     "actors"),
    ("group",
     "it is queued here behind {count} others of {group}, which runs {width} at a time{running}",
     "raise max_concurrency (or the group's width in concurrency_groups), give the long calls a group of "
     "their own, or use more actors"),
    ("pulled",
     "its argument {id}, {bytes} bytes, is pulled there from node {node}",
     "large arguments travel once per node: put the task where they are, or pass smaller ones"),
    ("fetched",
     "node {node} fetches it from node {source}: {come} of {bytes} bytes are there",
     "wait: it is on its way"),
    ("fetched-later",
     "node {node} fetches it after {count} others: {limit} at a time",
     "many objects are wanted at once; they come in turn"),
    ("source-busy",
     "node {node} asks its source again in {seconds} s: it is busy or does not answer",
     "the node that has the object serves others, or is gone: `miniray status`"),
    ("spilled",
     "its copy on node {node} is spilled to disk: {bytes} bytes",
     "it is read back when it is used; a larger object store (`object_store_memory`) keeps it in memory"),
    ("spilling",
     "its copy on node {node} is being written to disk",
     "wait: it can be read afterwards"),
    ("restoring",
     "node {node} restores it from disk: {bytes} bytes",
     "wait: it is being read back"),
    ("waits-for",
     "{name} ({id}) runs here{since}, and waits for {what} {object}",
     "the next links say why that is not ready"),
)  # fmt: skip

_add("stuck",
    ("cycle",
     "this is a cycle, and none of them can ever end: {names}",
     "break the circle: do not wait (`get`) inside a call for one that needs its caller; make the "
     "methods async, raise max_concurrency, or return the reference instead of its value"),
    ("cancelled",
     "{name} ({id}) was told to end by ray.cancel() {seconds} s ago, and runs on{at}",
     "its code catches KeyboardInterrupt (in a coroutine CancelledError) or is native: let it pass, or end "
     "it with ray.cancel(force=True), an actor with ray.kill()"),
    ("store-full",
     "node {node} makes room in its full store for its {bytes} bytes, for {client}",
     "delete references that are not needed, or start the node with more object_store_memory"),
    ("store-wait",
     "{name} ({id}) runs here{since}, and waits for {bytes} bytes of room in the object store{at}",
     "delete references that are not needed, or start the node with more object_store_memory"),
    ("no-room-yet",
     "node {node} has no room for its {bytes} bytes yet: the store is full",
     "others hold the store: their references must go, or the store must be larger"),
    ("disk-full",
     "nothing can be spilled: {reason}",
     "free space on that disk, or choose another (MINIRAY_SPILL_DIR)"),
    ("stopped",
     "{who} does not answer{running}: it is stopped by a signal (SIGSTOP): {command} lets it go on",
     "send it SIGCONT, or kill it"),
    ("native",
     "{who} does not answer{running}: it {state} and does not give up its interpreter lock{rest}",
     "`miniray stack` shows the Python line from which the native code was called"),
    ("unseen",
     "{who} does not answer{running}: it could not be looked at",
     "look at its node"),
    ("silent-node",
     "{who} does not answer: its node, {node}, has not answered",
     "the node is cut off, stopped or overloaded: it is declared dead after some seconds of silence"),
    ("silent-head",
     "the head has not answered for {seconds} s: it is away, cut off or overloaded",
     "see whether it runs (`miniray status`), and start it again: running work goes on meanwhile, new actors "
     "and placement groups wait for it, and nodes end after 60 s without it"),
    ("silent-daemon",
     "this session's daemon (pid {pid}) has not answered for {seconds} s: {why}",
     "wait, or start less at a time; `kill -CONT` the daemon if it was stopped"),
    ("silent-owner",
     "nobody who answers knows this id; its owner may be one of those who do not",
     "the next links name the processes that do not answer"),
)  # fmt: skip

_add("dead",
    ("segfault",
     "{who} ended with signal SIGSEGV{more}",
     "native code crashed: the end of its stderr has the Python stack; look at the extension named there"),
    ("killed-9",
     "{who} ended with signal SIGKILL{more}",
     "somebody, or the kernel for want of memory (`dmesg`), killed it from outside"),
    ("cut-off",
     "{who} closed its connection to its node while it lived, and was killed{more}",
     "its code has replaced the process (os.exec…) or closed descriptors that are not its own: run programs "
     "with subprocess"),
    ("signal",
     "{who} ended with signal {name}{more}",
     "something outside, or abort() in native code, ended it"),
    ("sys-exit",
     "{who} ended with exit status {code}: user code called sys.exit({argument}){more}",
     "raise an exception instead, or use ray.exit_actor() in an actor"),
    ("exit",
     "{who} ended with exit status {code}{more}",
     "user code or a library called os._exit; the end of its stderr may say why"),
    ("out-of-memory",
     "{who}: it ran {name} with {used} GiB when the machine had {sum} in use, more than {limit}; {rest}",
     "give such tasks memory=… or more num_cpus, so that fewer run at a time"),
    ("node",
     "node {name} died: {reason}",
     "see why the machine or its daemon ended; its work runs again elsewhere"),
    ("node-left",
     "node {name} left the cluster: {reason}",
     "it was drained or stopped on purpose"),
    ("owner",
     "the process that created the actor has ended: {why}",
     'make the actor detached (lifetime="detached") if it shall outlive its creator'),
    ("killed",
     "the actor is dead because it was killed by `ray.kill`{by}",
     "the named process did it"),
    ("out-of-scope",
     "all handles of the actor went out of scope",
     "keep a handle, give it a name, or make it detached"),
    ("by-request",
     "ended by request",
     "`__ray_terminate__` was called, or an ending was asked for"),
    ("exit-actor",
     "{who} ended with exit status {code}: exit_actor() was called{more}",
     "it ended on purpose"),
    ("unneeded",
     "{who} ended with exit status {code}: the actor is not needed any more{more}",
     "all its handles went out of scope: keep one, give it a name, or make it detached"),
    ("job",
     "its job {id} has ended",
     "what is not detached ends with its driver"),
    ("constructor",
     "the constructor of {name} raised {error}",
     "mend the constructor, or its arguments"),
    ("unschedulable",
     "the actor can never be placed: {reason}",
     "the reason names what is missing"),
    ("affinity",
     "node {node}, the only one allowed, is not alive",
     "use soft=True, or a node that lives (`miniray status`)"),
    ("affinity-small",
     "node {node}, the only one allowed: {lack}",
     "use soft=True, or ask for what that node has"),
    ("group-removed",
     "{what}placement group {id} was removed{more}",
     "remove a group after what uses it, not before"),
    ("environment",
     "{what} could not be started: {problem}",
     "the tool's last lines say what is wrong with the runtime_env"),
    ("start",
     "a worker process{environment} ended {count} times before it was ready: {detail}",
     "the detail says how it ended: an import, a setup hook or the interpreter may be broken"),
    ("cancelled",
     "task {name} ({id}) was cancelled",
     "ray.cancel() was called for it, or for its parent"),
    ("raised",
     "task {name} ({id}) failed{where}",
     "the next link is what it raised; the error that `get` raises has the traceback"),
    ("attempts",
     "this was attempt {number}: those before it failed",
     "its story tells of the attempts"),
    ("actor-dead",
     "actor {title} is dead",
     "the next links say why"),
    ("node-dead",
     "node {name} is dead{why}",
     "the next links say why"),
)  # fmt: skip

_add("held",
    ("references",
     "held by {count} of this process",
     "`del` the names that hold it, or leave their function"),
    ("in-flight",
     "held by {count} in flight, or values with it inside",
     "it goes when those tasks end and those values are freed"),
    ("borrower",
     "held by worker {id} of node {node}",
     "that process has a reference: the next links say which"),
    ("lineage",
     "kept for {count} that may run again",
     "what they made is still referenced, and may have to be made again"),
    ("line",
     "the reference {came} at {place}",
     "this is where the process got its reference"),
    ("ready",
     "object {id} is ready: {bytes} bytes in {where}",
     "nothing is wrong: get() returns at once"),
)  # fmt: skip

_add("lost",
    ("freed",
     "it was freed: nothing referred to it any more",
     "keep the ObjectRef itself; its hex or bytes alone hold nothing"),
    ("owner-freed",
     "its owner has freed it",
     "keep a reference in the process that owns it, or pass the ObjectRef itself"),
    ("owner",
     "its owner is gone: {why}",
     "let a process that lives longer own it: return it, or put it there"),
    ("no-copy",
     "no node has a copy of object {id} (any more){tried}",
     "its task runs again if it can"),
    ("put",
     "PUT: {text}",
     "what was put cannot be made again: return it from a task instead"),
    ("attempts",
     "MAX_ATTEMPTS_EXCEEDED: {text}",
     "raise max_retries of its task"),
    ("no-retries",
     "RETRIES_DISABLED: {text}",
     "give its task max_retries above 0; results of actor calls are never made again"),
    ("forgotten",
     "LINEAGE_EVICTED: {text}",
     "raise MINIRAY_MAX_LINEAGE_BYTES"),
    ("given-up",
     "TASK_CANCELLED: {text}",
     "its task was cancelled, so it does not run again"),
    ("never-fits",
     "object {id} of {size} can never fit: the object store of this node has {capacity}; {rest}",
     "start the node with a larger object_store_memory, or split the object"),
    ("no-room",
     "no room for object {id} of {size} in the object store of {capacity} after {seconds} s: {holders}",
     "the message names who holds the store: drop those references"),
)  # fmt: skip


_SPEAKER = re.compile(r"^\S[^:]* [0-9a-f]{12} \(pid \d+, node [0-9a-f]{12}\): ")
"""Who says it, before the link of another process."""
_OF_AN_ACTOR = "The actor died because its node has died. "


@functools.cache
def _patterns() -> list[tuple[re.Pattern[str], Situation]]:
    """Compiled at the first question; those with words at the start, and with most words, come first."""
    def rank(one: Situation) -> tuple[bool, int]:
        return one.says.startswith("{"), -len(re.sub(r"\{\w+\}", "", one.says))

    ranked = sorted(CATALOGUE.values(), key=rank)
    return [(_pattern(one.says), one) for one in ranked]


def _pattern(says: str) -> re.Pattern[str]:
    parts = re.split(r"\{\w+\}", says)
    return re.compile(".*".join(re.escape(part) for part in parts), re.DOTALL)


def recognise(link: str) -> Situation | None:
    """The situation that a link of a chain describes; None for what user code said, say."""
    words = _SPEAKER.sub("", link).removeprefix(_OF_AN_ACTOR)
    found = [one for pattern, one in _patterns() if pattern.fullmatch(words)]
    if not found or not found[0].says.startswith("{"):
        return found[0] if found else None
    return min(found, key=lambda one: words.find(_literal(one)))


def _literal(one: Situation) -> str:
    """The first words of a sentence that begins with a name."""
    return next(part for part in re.split(r"\{\w+\}", one.says) if part.strip())


def advice(links: Iterable[str]) -> str:
    """What helps: of the last link about which there is something to do, else to look at."""
    found = [one.helps for one in map(recognise, links) if one is not None]
    doing = [helps for helps in found if not helps.startswith(_LOOKING_ON)]
    return (doing or found or [""])[-1]


_LOOKING_ON = ("wait", "the next link", "`miniray stack`", "`del`")
"""How advice begins that asks for patience, or for another look."""


def page() -> str:
    """The catalogue as Markdown: docs/explanations.md."""
    lines = [
        "# What `miniray why` says",
        "",
        "Every situation that an explanation can name, and what helps. `miniray why --catalogue` prints this",
        "page; words in italics stand for names, ids and figures. See also `miniray why --help`,",
        "`util.state.explain` and `miniray stack`.",
    ]
    for group, title in GROUPS.items():
        lines += ["", f"## {title}", "", "| situation | it says | what helps |", "|---|---|---|"]
        for one in CATALOGUE.values():
            if one.group == group:
                says = re.sub(r"\{(\w+)\}", r"*\1*", one.says).replace("|", "\\|")
                lines.append(f"| {one.key} | {says} | {one.helps} |")
    return "\n".join(lines) + "\n"

"""What `miniray why` and `stack` give, and `util.state` too: explanations, and what processes execute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from miniray.printable import on_one_line, printable

if TYPE_CHECKING:
    from miniray._proto import gcs_pb2 as gcs


class Explanation:
    """Why something is as it is. `str()` is for people.

    `kind` says what it is ("" when nothing is known of the id), `sentence` how it is, `chain` why:
    each link is the reason for the one before. `story` is what happened, oldest first; `advice` what helps.
    """

    def __init__(self, message: gcs.Explanation) -> None:
        self.kind: str = message.kind
        self.sentence: str = message.sentence
        self.chain: list[str] = list(message.chain)
        self.story: list[str] = list(message.story)

    @property
    def advice(self) -> str:
        """What helps, by the catalogue of situations (docs/explanations.md); "" where nothing is known."""
        from miniray.core import situations

        return situations.advice([self.sentence, *self.chain])

    def __str__(self) -> str:
        if not self.kind:
            return "nothing is known of this id: neither the head nor the driver of its job knows it"
        lines = [printable(self.sentence, "  "), *(f"  - {printable(link, '    ')}" for link in self.chain)]
        if self.advice:
            lines.append(f"what helps: {self.advice}")
        if self.story:
            lines += ["what happened:", *(f"  {printable(line, '    ')}" for line in self.story)]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Explanation {self.kind or 'unknown'}: {self.sentence}>"


class Stack:
    """What one process executes. `str()` is for people.

    `title` says what it is, `running` names its tasks, `text` has the Python stack of every thread
    ("" where there is none to be had), `silent` how it is if it does not answer.
    """

    def __init__(self, finding: gcs.Finding) -> None:
        self.node_id: str = finding.address.node_id.hex()
        self.worker_id: str = finding.address.worker_id.hex()
        self.pid: int = finding.pid
        self.title: str = finding.title
        self.running: list[str] = list(finding.running)
        self.text: str = finding.stack
        self.silent: str = finding.silent

    def __str__(self) -> str:
        where = f"{on_one_line(self.title)} {self.worker_id[:12]} (pid {self.pid}, node {self.node_id[:12]})"
        lines = [where + (f": does not answer, {on_one_line(self.silent)}" if self.silent else "")]
        lines += [f"  runs: {on_one_line(task)}" for task in self.running]
        if self.silent and self.text:
            lines.append("  its stacks, most recent call first, from a signal:")
        return "\n".join([*lines, *("  " + printable(line) for line in self.text.splitlines())])

    def __repr__(self) -> str:
        return f"<Stack of {self.title} pid {self.pid}>"


def key_of(thing: Any) -> bytes:
    """The id behind an ObjectRef, handle, placement group, id object, bytes or hex.

    Raises TypeError or ValueError for anything else.
    """
    if isinstance(thing, str):
        return bytes.fromhex(thing)
    if isinstance(thing, bytes):
        return thing
    for name in ("_actor_id", "id"):
        inner = getattr(thing, name, None)
        if inner is not None and not callable(inner):
            return key_of(inner)
    if not hasattr(thing, "binary"):
        raise TypeError(f"{thing!r} has no id: give an ObjectRef, an actor handle, a group or an id")
    return bytes(thing.binary())

"""What runs in the simulated workers: task bodies, actor constructors and methods.

A program is a coroutine `program(context, body, arguments)`; `arguments` are `Loaded` values and,
last, the list of nested references. It returns one (size, note, references) per return value. The
notes of tasks depend on nothing but the task, so that a second run gives the same value; actors
count, and their callers may look.
"""

from __future__ import annotations

from typing import Any

from .context import Context
from .values import Failed, Raised, Ref
from .world import Coroutine

LARGE = 200 * 1024

GIVE_WAIT_S = 1.0

Result = list[tuple[int, Any, list[Ref]]]


def plain(returns: int = 1, size: int = 100) -> Result:
    """Results without a note."""
    return [(size, None, []) for _ in range(returns)]


def short(context: Context, body: Any, arguments: list[Any]) -> Coroutine:
    """Microseconds of work."""
    yield from context.work(context.rng.uniform(20e-6, 300e-6))
    return plain(body or 1)


def medium(context: Context, body: Any, arguments: list[Any]) -> Coroutine:
    """Some milliseconds; every other result goes to the store."""
    yield from context.work(context.rng.uniform(0.001, 0.03))
    return plain(body or 1, LARGE if context.task[0] % 2 else 100)


def long(context: Context, body: Any, arguments: list[Any]) -> Coroutine:
    """A good part of a second, and a stored result."""
    yield from context.work(context.rng.uniform(0.2, 0.8))
    return plain(body or 1, LARGE)


def raises(context: Context, body: Any, arguments: list[Any]) -> Coroutine:
    """An exception, always or (`body`) on two of three attempts."""
    yield from context.work(context.rng.uniform(0.0001, 0.005))
    if body == "sometimes" and context.run is not None and context.run.push.attempt >= 2:
        return plain()
    raise Raised("as planned")


def reads_nested(context: Context, body: Any, arguments: list[Any]) -> Coroutine:
    """Gets the references it was given, and returns some of them inside its value."""
    nested: list[Ref] = arguments[-1]
    yield from context.work(context.rng.uniform(0.0005, 0.01))
    yield from context.get(nested)
    kept = [ref for ref in nested if context.chance(0.5)]
    return [(LARGE if context.chance(0.3) else 100, None, kept)]


def returns_puts(context: Context, body: Any, arguments: list[Any]) -> Coroutine:
    """Puts objects, one inside the other, and returns references to them."""
    inner = yield from context.put(LARGE if context.chance(0.5) else 100)
    outer = yield from context.put(100, [inner])
    yield from context.work(context.rng.uniform(0.0005, 0.01))
    return [(100, None, [outer, inner] if context.chance(0.5) else [outer])]


def tree(context: Context, body: int, arguments: list[Any]) -> Coroutine:
    """Nested fork and join, `body` levels deep."""
    yield from context.work(context.rng.uniform(0.0005, 0.01))
    if body > 0:
        children = []
        for _ in range(2):
            children += context.submit("tree", nested=arguments[-1], body=body - 1)
        results = yield from context.get(children)
        failed = next((result for result in results if isinstance(result, Failed)), None)
        if failed is not None and not context.chance(0.5):
            raise Raised(f"a child failed: {failed.text}"[:60])
    return plain(1, LARGE if context.chance(0.2) else 100)


def delegates(context: Context, body: Any, arguments: list[Any]) -> Coroutine:
    """Submits a child with what it was given and returns the child's reference unread."""
    yield from context.work(context.rng.uniform(0.0005, 0.01))
    return [(100, None, context.submit(context.pick(["medium", "reads_nested"]), nested=arguments[-1]))]


def calls_actor(context: Context, body: Any, arguments: list[Any]) -> Coroutine:
    """Calls the actor whose handle it was given a few times."""
    refs = []
    for handle in arguments[-1]:
        if handle.actor:
            for _ in range(context.rng.randrange(1, 4)):
                refs += context.call(handle, "count")
    yield from context.get(refs)
    return plain()


# ---- actors


def actor_init(context: Context, body: Any, arguments: list[Any]) -> Coroutine:
    """A constructor; `body` "raises" makes it fail."""
    yield from context.work(context.rng.uniform(0.001, 0.02))
    if body == "raises":
        raise Raised("the constructor fails as planned")
    context.state["count"] = 0
    context.state["kept"] = []
    context.state["handles"] = []
    return []


def count(context: Context, body: Any, arguments: list[Any]) -> Coroutine:
    """Counts its calls."""
    yield from context.work(context.rng.uniform(20e-6, 0.002))
    context.state["count"] += 1
    note = (context.worker.name, context.state["count"])
    return [(LARGE if context.chance(0.1) else 100, note, [])]


def keep(context: Context, body: Any, arguments: list[Any]) -> Coroutine:
    """Keeps the references it was given beyond the call."""
    yield from context.work(context.rng.uniform(20e-6, 0.002))
    for ref in arguments[-1]:
        context.keep(ref)
        context.state["handles" if ref.actor else "kept"].append(ref)   # handles are not given on
    return [(100, context.worker.name, [])]


def give(context: Context, body: Any, arguments: list[Any]) -> Coroutine:
    """Gets what of the kept is ready, returns the references, and forgets some.

    It does not wait for all of them for ever: a task whose result was kept may be calling this actor.
    """
    kept: list[Ref] = context.state["kept"]
    some = [context.copy(ref) for ref in kept[-3:]]
    ready = yield from context.wait(some, len(some), GIVE_WAIT_S)
    yield from context.get(ready)
    for ref in kept[:-3]:
        if context.chance(0.5):
            kept.remove(ref)
            context.drop(ref)
    return [(100, (context.worker.name, len(context.worker.world.lines)), some)]


PROGRAMS: dict[str, Any] = {
    function.__name__: function
    for function in (
        short, medium, long, raises, reads_nested, returns_puts, tree, delegates, calls_actor, actor_init,
        count, keep, give,
    )
}  # fmt: skip

"""Templates: what every call of one remote function, method or actor class has in common.

A template is resolved from the user's options once; a call adds only its arguments. The worker
library keeps what it derived for the current session (function number, scheduling class) in
`bound`, so that a call finds everything with one attribute read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from miniray._native import RecordBase

STREAMING = -1
"""`num_returns="streaming"`: the task yields its results one by one."""

DYNAMIC = -2
"""`num_returns="dynamic"`: one reference to a generator of references."""

UNKNOWN_COST_US = 1e6
"""What a task is taken to cost until one of its kind has run."""

WAITING, READY, PUSHED, FINISHED, CANCELLED = range(5)


@dataclass(slots=True, eq=False)
class TaskTemplate:
    """One remote function with its options. Resource amounts are in units of 1/10,000."""

    function: Callable[..., Any]
    name: str
    num_returns: int = 1
    resources: dict[str, int] = field(default_factory=dict)
    strategy: Any = None
    runtime_env: str = ""
    max_retries: int = 3
    retry_exceptions: bool | tuple[type[BaseException], ...] = False
    max_calls: int = 0
    priority: int = 0
    generator_backpressure: int = -1
    bound: Any = None
    cost_us: float = UNKNOWN_COST_US
    """Running mean of the execution time in microseconds, as workers report it."""


@dataclass(slots=True, eq=False)
class MethodTemplate:
    """One method of an actor class."""

    name: str
    num_returns: int = 1
    concurrency_group: str = ""
    max_task_retries: int | None = None
    retry_exceptions: bool | tuple[type[BaseException], ...] = False
    enable_task_events: bool = True
    generator_backpressure: int = -1
    bound: Any = None


@dataclass(slots=True, eq=False)
class ActorTemplate:
    """One actor class with its options."""

    cls: type
    class_name: str
    methods: dict[str, MethodTemplate]
    resources: dict[str, int] = field(default_factory=dict)
    creation_resources: dict[str, int] = field(default_factory=dict)
    strategy: Any = None
    runtime_env: str = ""
    name: str = ""
    namespace: str | None = None
    detached: bool = False
    get_if_exists: bool = False
    max_restarts: int = 0
    max_task_retries: int = 0
    max_pending_calls: int = -1
    max_concurrency: int | None = None
    concurrency_groups: dict[str, int] = field(default_factory=dict)
    out_of_order: bool = False
    is_async: bool = False
    priority: int = 0
    bound: Any = None


class TaskRecord(RecordBase):
    """One submitted task, actor call or actor creation, at its owner.

    Made from id, template, arguments, dependencies, held, returns, retries, lane, client, parent
    and the time. `held` are the entries pinned until the reply (arguments and references inside
    them); `dependencies` the top-level arguments that must have a value before it can be pushed;
    `call` its number on the channel it was pushed to; `remote` the worker it was pushed to.
    """

    __slots__ = ()

    @property
    def label(self) -> str:
        """What people know it by: "f", "Class.method", or the name its caller gave it."""
        return getattr(self.template, "label", "") or self.name

    def __repr__(self) -> str:
        return f"<task {self.name} {self.id.hex()} attempt {self.attempt}>"

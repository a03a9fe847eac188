"""What the state API's rows and options are called: one class for each kind of row.

A row is a dict whose fields are attributes too; its class says what it is a row of.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from enum import Enum, unique
from typing import Any

from miniray.state_rows import Row

Filters = list[tuple[str, str, Any]]

DEFAULT_RPC_TIMEOUT = 30
DEFAULT_LIMIT = 100
PREDICATES = ("=", "!=")


@unique
class StateResource(Enum):
    """What can be listed."""

    ACTORS = "actors"
    JOBS = "jobs"
    PLACEMENT_GROUPS = "placement_groups"
    NODES = "nodes"
    WORKERS = "workers"
    TASKS = "tasks"
    OBJECTS = "objects"


@unique
class SummaryResource(Enum):
    """What can be summarized."""

    ACTORS = "actors"
    TASKS = "tasks"
    OBJECTS = "objects"


class StateSchema(Row):
    """A row of the state API: `row["state"]` and `row.state` are the same."""

    def asdict(self) -> dict[str, Any]:
        """The fields as a plain dict."""
        return dict(self)


class ActorState(StateSchema):
    """An actor."""


class PlacementGroupState(StateSchema):
    """A placement group."""


class NodeState(StateSchema):
    """A node."""


class JobState(StateSchema):
    """A job: one driver."""


class WorkerState(StateSchema):
    """A worker process or driver."""


class TaskState(StateSchema):
    """One attempt of a task, an actor call or an actor creation."""


class ObjectState(StateSchema):
    """An object as one process sees it."""


def checked(filters: Filters | None) -> Filters:
    """The filters; ValueError for an operator other than "=" and "!="."""
    for _, operator, _ in filters or ():
        if operator not in PREDICATES:
            raise ValueError(
                f"Unsupported filter predicate {operator!r} is given. Available predicates: =, !=."
            )
    return list(filters or ())


@dataclass
class ListApiOptions:
    """How to list: `timeout` in seconds; all of the `filters` must hold."""

    limit: int = DEFAULT_LIMIT
    timeout: float = DEFAULT_RPC_TIMEOUT
    detail: bool = False
    filters: Filters | None = field(default_factory=list)
    exclude_driver: bool = True
    server_timeout_multiplier: float = 0.8

    def __post_init__(self) -> None:
        self.filters = checked(self.filters)


@dataclass
class GetApiOptions:
    """How to get one row: `timeout` in seconds."""

    timeout: float = DEFAULT_RPC_TIMEOUT
    server_timeout_multiplier: float = 0.8


@dataclass
class SummaryApiOptions:
    """How to summarize: `timeout` in seconds."""

    timeout: float = DEFAULT_RPC_TIMEOUT
    filters: Filters | None = field(default_factory=list)
    summary_by: str | None = None

    def __post_init__(self) -> None:
        self.filters = checked(self.filters)


class Humanify:
    """Numbers of rows as people read them."""

    @staticmethod
    def timestamp(milliseconds: float) -> str:
        """A moment since 1970, in local time."""
        return str(datetime.datetime.fromtimestamp(milliseconds / 1000))

    @staticmethod
    def memory(size_bytes: float) -> str:
        """A size with three decimals, in the largest binary unit that it fills."""
        for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
            if size_bytes >= 2**power:
                return f"{size_bytes / 2**power:.3f} {unit}"
        return f"{size_bytes:.3f} B"

    @staticmethod
    def duration(milliseconds: float) -> str:
        """A span as days and h:mm:ss."""
        return str(datetime.timedelta(milliseconds=milliseconds))

    @staticmethod
    def node_resources(resources: dict[str, Any]) -> dict[str, Any]:
        """A node's resources, those that are memory as sizes."""
        return {
            name: Humanify.memory(amount) if "memory" in name else amount
            for name, amount in resources.items()
        }

"""miniray: a distributed execution engine with the API of Ray Core (``import miniray as ray``).

Names are imported when they are first used, so that daemons, which import submodules only, load
nothing of the API.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's, without its import: `init` starts a daemon before it loads anything
if TYPE_CHECKING:
    from typing import Any

    from miniray import actor, exceptions, util
    from miniray.actor import ActorHandle, method
    from miniray.api import cancel, get, get_actor, get_gpu_ids, is_initialized, kill, put, wait
    from miniray.cluster_info import available_resources, cluster_resources, nodes, timeline
    from miniray.decorator import remote
    from miniray.generator import DynamicObjectRefGenerator, ObjectRefGenerator
    from miniray.ids import (
        ActorClassID,
        ActorID,
        ClusterID,
        FunctionID,
        JobID,
        NodeID,
        ObjectID,
        ObjectRef,
        PlacementGroupID,
        TaskID,
        UniqueID,
        WorkerID,
    )
    from miniray.runtime_context import get_runtime_context
    from miniray.session import init, shutdown

__version__ = "0.1.0"

SCRIPT_MODE, WORKER_MODE, LOCAL_MODE = 0, 1, 2

_HOME = {
    "ActorClassID": "ids",
    "ActorHandle": "actor",
    "ActorID": "ids",
    "ClusterID": "ids",
    "DynamicObjectRefGenerator": "generator",
    "FunctionID": "ids",
    "JobID": "ids",
    "NodeID": "ids",
    "ObjectID": "ids",
    "ObjectRef": "ids",
    "ObjectRefGenerator": "generator",
    "PlacementGroupID": "ids",
    "TaskID": "ids",
    "UniqueID": "ids",
    "WorkerID": "ids",
    "available_resources": "cluster_info",
    "cancel": "api",
    "cluster_resources": "cluster_info",
    "get": "api",
    "get_actor": "api",
    "get_gpu_ids": "api",
    "get_runtime_context": "runtime_context",
    "LoggingConfig": "logging_config",
    "init": "session",
    "is_initialized": "api",
    "kill": "api",
    "method": "actor",
    "nodes": "cluster_info",
    "put": "api",
    "remote": "decorator",
    "shutdown": "session",
    "timeline": "cluster_info",
    "wait": "api",
}
"""Public names and the modules that have them."""

_MODULES = frozenset(
    {
        "actor",
        "autoscaler",
        "cloudpickle",
        "cluster_utils",
        "dag",
        "exceptions",
        "experimental",
        "job_config",
        "remote_function",
        "runtime_context",
        "runtime_env",
        "train",
        "types",
        "util",
    }
)
"""Public submodules that need no import statement."""

__all__ = [
    "init",
    "shutdown",
    "is_initialized",
    "remote",
    "method",
    "get",
    "put",
    "wait",
    "cancel",
    "kill",
    "get_actor",
    "nodes",
    "cluster_resources",
    "available_resources",
    "get_runtime_context",
    "get_gpu_ids",
    "timeline",
    "ObjectRef",
    "ObjectRefGenerator",
    "DynamicObjectRefGenerator",
    "ActorHandle",
    "ActorClassID",
    "ActorID",
    "ClusterID",
    "FunctionID",
    "JobID",
    "NodeID",
    "ObjectID",
    "PlacementGroupID",
    "TaskID",
    "UniqueID",
    "WorkerID",
    "actor",
    "exceptions",
    "util",
]


def __getattr__(name: str) -> Any:
    import importlib

    home = _HOME.get(name)
    if home is not None:
        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{home}"), name)
        return value
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})

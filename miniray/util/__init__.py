"""Helpers on top of the core API: pools, queues, placement groups, state, serializers."""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from miniray.util.placement_group import (
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

if TYPE_CHECKING:
    from miniray.util.actor_pool import ActorPool
    from miniray.util.check_serialize import inspect_serializability
    from miniray.util.helpers import (
        as_completed,
        deregister_serializer,
        get_node_instance_id,
        get_node_ip_address,
        list_named_actors,
        log_once,
        map_unordered,
        register_serializer,
    )


class _Package(ModuleType):
    """`placement_group` is a function and a module here, as in Ray: the name is the function,
    also after somebody imports the module (which would put the module in its place)."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "placement_group" or not isinstance(value, ModuleType):
            super().__setattr__(name, value)

    def __reduce__(self) -> Any:
        import importlib

        return importlib.import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Package

_LAZY = {
    "ActorPool": "actor_pool",
    "as_completed": "helpers",
    "deregister_serializer": "helpers",
    "get_node_instance_id": "helpers",
    "get_node_ip_address": "helpers",
    "inspect_serializability": "check_serialize",
    "list_named_actors": "helpers",
    "log_once": "helpers",
    "map_unordered": "helpers",
    "register_serializer": "helpers",
}

_MODULES = frozenset(
    {
        "actor_group",
        "actor_pool",
        "annotations",
        "check_serialize",
        "collective",
        "helpers",
        "joblib",
        "metrics",
        "multiprocessing",
        "queue",
        "scheduling_strategies",
        "state",
    }
)

__all__ = [
    "ActorPool",
    "as_completed",
    "deregister_serializer",
    "get_current_placement_group",
    "get_node_instance_id",
    "get_node_ip_address",
    "get_placement_group",
    "inspect_serializability",
    "list_named_actors",
    "log_once",
    "map_unordered",
    "placement_group",
    "placement_group_table",
    "register_serializer",
    "remove_placement_group",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name in _LAZY:
        value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

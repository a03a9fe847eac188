"""Options of tasks, actors and methods: which there are, what they accept, what they mean.

`validate_task` and `validate_actor` check names, types and ranges with Ray's messages.
`resources_of`, `strategy_of` and `runtime_env_of` turn checked options into what templates hold:
amounts in units of 1/10,000, a `SchedulingStrategy` message and canonical JSON.

Pure but for `warnings`; protobuf is imported at the first use of a strategy.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from miniray import labels
from miniray.util import scheduling_strategies as strategies

if TYPE_CHECKING:
    from miniray._proto.common_pb2 import SchedulingStrategy

UNIT = 10_000
"""Resource amounts are counted in 1/UNIT."""

ACCELERATOR_TYPE_AMOUNT = 10
"""What a task takes of `accelerator_type:T`: 0.001, so that it only selects nodes."""

WHOLE_DEVICES = frozenset({"GPU", "TPU", "HPU", "NPU", "neuron_cores"})
"""Resources that are devices: a share of one can be taken, or several whole ones."""

_NONE = type(None)


@dataclass(frozen=True)
class Option:
    """One option: accepted types, a check of the value (returning what is wrong), the default."""

    type_constraint: type | tuple[type, ...] | None = None
    value_constraint: Callable[[Any], str | None] | None = None
    default_value: Any = None

    def validate(self, keyword: str, value: Any) -> None:
        """TypeError or ValueError when `value` will not do."""
        if self.type_constraint is not None and not isinstance(value, self.type_constraint):
            raise TypeError(
                f"The type of keyword '{keyword}' must be {self.type_constraint}, "
                f"but received type {type(value)}"
            )
        if self.value_constraint is not None:
            wrong = self.value_constraint(value)
            if wrong:
                raise ValueError(wrong)


def _count(name: str, infinite: bool = True, default: int | None = None) -> Option:
    lowest = -1 if infinite else 0
    accepted = (
        "0, -1 or a positive integer, where -1 represents infinity."
        if infinite
        else "0 or a positive integer."
    )
    text = f"The keyword '{name}' only accepts None, {accepted}"
    return Option((int, _NONE), lambda x: None if x is None or x >= lowest else text, default)


MAX_QUANTITY = (1 << 60) // UNIT
MAX_RESOURCES = 20_000
"""As `core.limits` has them, which is not loaded for this."""


def _quantity_error(name: str, quantity: float) -> str | None:
    if len(name) > 1_000:
        return f"The name of a resource has at most 1000 characters, not {len(name)}: {name[:40]}..."
    if quantity < 0:
        return f"The quantity of resource {name} cannot be negative"
    if not quantity <= MAX_QUANTITY:
        return f"The quantity of resource {name} must be a number up to {MAX_QUANTITY}, not {quantity}"
    if isinstance(quantity, float) and quantity != 0.0 and int(quantity * UNIT) == 0:
        return f"The precision of the fractional quantity of resource {name} cannot go beyond 0.0001"
    return None


def _resource(name: str, default: float | None = None) -> Option:
    return Option((float, int, _NONE), lambda x: None if x is None else _quantity_error(name, x), default)


def _resources_error(resources: Mapping[str, float] | None) -> str | None:
    if resources is None:
        return None
    if "CPU" in resources or "GPU" in resources:
        return "Use the 'num_cpus' and 'num_gpus' keyword instead of 'CPU' and 'GPU' in 'resources' keyword"
    if len(resources) > MAX_RESOURCES:
        return f"A task or actor can ask for {MAX_RESOURCES} resources at most, not {len(resources)}"
    for name, quantity in resources.items():
        wrong = _quantity_error(name, quantity)
        if wrong:
            return wrong
    return None


def _fallback_error(fallbacks: list[dict[str, Any]] | None) -> str | None:
    for fallback in fallbacks or ():
        if not isinstance(fallback, dict):
            return "Each element in fallback_strategy must be a dictionary."
        if not fallback:
            return "Empty dictionary found in `fallback_strategy`."
        for name in fallback:
            if name != "label_selector":
                return f"Unsupported option found: '{name}'. Only ['label_selector'] is currently supported."
        selector = fallback["label_selector"]
        if selector and not isinstance(selector, dict):
            return 'The value of "label_selector" must be a dictionary.'
        wrong = labels.selector_error(selector)
        if wrong:
            return wrong
    return None


# ---- the tables ----


def _num_returns_error(value: Any) -> str | None:
    if value is None or value in ("dynamic", "streaming") or (isinstance(value, int) and value >= 0):
        return None
    return (
        "Default None: 1 for a function or method, 'streaming' for a generator. "
        "The keyword 'num_returns' only accepts None, a non-negative integer, "
        "'streaming' (for generators), or 'dynamic' (an older form of it)."
    )


def _retry_error(value: Any) -> str | None:
    if isinstance(value, bool) or all(isinstance(x, type) and issubclass(x, Exception) for x in value):
        return None
    return "retry_exceptions must be either a boolean or a list of exceptions"


def _environment_error(value: Any) -> str | None:
    """Raises by itself: a wrong field may be a TypeError or a ValueError."""
    if value:
        from miniray.runtime_env import validate

        validate(value, of_job=False)
    return None


_BACKPRESSURE = Option(
    (int, _NONE),
    lambda x: (
        None
        if x != 0
        else "_generator_backpressure_num_objects=0 is not allowed. Use a value > 0 "
        "(1 is like a plain Python generator), or -1 for no limit."
    ),
)

_PER_YIELD = Option(
    (int, _NONE),
    lambda x: None if x is None or x > 0 else "_num_objects_per_yield must be a positive integer.",
    1,
)


class _AnyGroup(type):
    """Stands for PlacementGroup in type checks without importing it."""

    def __instancecheck__(cls, value: Any) -> bool:
        return type(value).__name__ == "PlacementGroup"


class _PlacementGroupLike(metaclass=_AnyGroup):
    pass


_common_options: dict[str, Option] = {
    "label_selector": Option((dict, _NONE), labels.selector_error),
    "fallback_strategy": Option((list, _NONE), _fallback_error),
    "accelerator_type": Option((str, _NONE)),
    "memory": _resource("memory"),
    "name": Option((str, _NONE)),
    "num_cpus": _resource("num_cpus"),
    "num_gpus": _resource("num_gpus"),
    "object_store_memory": _count("object_store_memory", False),
    "placement_group": Option((_NONE, str, _PlacementGroupLike), default_value="default"),
    "placement_group_bundle_index": Option(int, default_value=-1),
    "placement_group_capture_child_tasks": Option((bool, _NONE)),
    "priority": Option(int, default_value=0),
    "resources": Option((dict, _NONE), _resources_error),
    "runtime_env": Option((dict, _NONE), _environment_error),
    "scheduling_strategy": Option(
        (
            _NONE,
            str,
            strategies.PlacementGroupSchedulingStrategy,
            strategies.NodeAffinitySchedulingStrategy,
            strategies.NodeLabelSchedulingStrategy,
        )
    ),
    "enable_task_events": Option(bool, default_value=True),
    "_labels": Option((dict, _NONE)),
}

task_options: dict[str, Option] = {
    **_common_options,
    "max_calls": _count("max_calls", False, 0),
    "max_retries": _count("max_retries", default=3),
    "num_cpus": _resource("num_cpus", 1),
    "num_returns": Option((int, str, _NONE), _num_returns_error),
    "object_store_memory": Option(
        (int, _NONE),
        lambda x: None if x is None else "Setting 'object_store_memory' is not implemented for tasks",
    ),
    "retry_exceptions": Option((bool, list, tuple), _retry_error, False),
    "_generator_backpressure_num_objects": _BACKPRESSURE,
    "_num_objects_per_yield": _PER_YIELD,
}

actor_options: dict[str, Option] = {
    **_common_options,
    "concurrency_groups": Option((list, dict, _NONE)),
    "enable_tensor_transport": Option((bool, _NONE)),
    "lifetime": Option(
        (str, _NONE),
        lambda x: (
            None
            if x in (None, "detached", "non_detached")
            else "actor `lifetime` argument must be one of 'detached', 'non_detached' and 'None'."
        ),
    ),
    "max_concurrency": _count("max_concurrency", False),
    "max_restarts": _count("max_restarts", default=0),
    "max_task_retries": _count("max_task_retries", default=0),
    "max_pending_calls": _count("max_pending_calls", default=-1),
    "namespace": Option((str, _NONE)),
    "get_if_exists": Option(bool, default_value=False),
    "allow_out_of_order_execution": Option((bool, _NONE)),
    "_actor_generator_backpressure_num_objects": Option((int, _NONE)),
}

REMOTE_ERROR = (
    "The @ray.remote decorator must be applied either with no arguments and no parentheses, for example "
    "'@ray.remote', or it must be applied using some of the arguments in the list "
    f"{sorted({*task_options, *actor_options})}, for example "
    "'@ray.remote(num_returns=2, resources={\"CustomResource\": 1})'."
)


def validate_task(options: Mapping[str, Any], *, in_options: bool, is_generator: bool | None = None) -> None:
    """Check the options of a remote function. `in_options`: given to `.options()`."""
    for name, value in options.items():
        option = task_options.get(name)
        if option is None:
            raise ValueError(
                f"Invalid option keyword {name} for remote functions. Valid ones are {list(task_options)}."
            )
        option.validate(name, value)
    if in_options and "max_calls" in options:
        raise ValueError("Setting 'max_calls' is not supported in '.options()'.")
    _check_group_options(options)
    if is_generator is not None:
        check_num_returns(options.get("num_returns"), is_generator)


def validate_actor(options: Mapping[str, Any], *, in_options: bool) -> None:
    """Check the options of an actor class. `in_options`: given to `.options()`."""
    for name, value in options.items():
        option = actor_options.get(name)
        if option is None:
            raise ValueError(
                f"Invalid option keyword {name} for actors. Valid ones are {list(actor_options)}."
            )
        option.validate(name, value)
    if in_options and "concurrency_groups" in options:
        raise ValueError("Setting 'concurrency_groups' is not supported in '.options()'.")
    if options.get("get_if_exists") and not options.get("name"):
        raise ValueError("The actor name must be specified to use `get_if_exists`.")
    _check_group_options(options)


def _check_group_options(options: Mapping[str, Any]) -> None:
    group = options.get("placement_group", "default")
    if group not in ("default", None) and options.get("scheduling_strategy") is not None:
        raise ValueError(
            "Placement groups should be specified via the scheduling_strategy option. "
            "The placement_group option is deprecated."
        )


def check_num_returns(value: Any, is_generator: bool) -> None:
    """Check `num_returns` against what the function is; warns about 'dynamic'."""
    if value is None:
        return
    if isinstance(value, int) and value < 0:
        raise ValueError(f"num_returns must be >= 0, but got {value}.")
    if value == "dynamic":
        warnings.warn(
            "num_returns='dynamic' is deprecated: use 'streaming'.", DeprecationWarning, stacklevel=4
        )
    if value in ("streaming", "dynamic") and not is_generator:
        raise ValueError(
            f"num_returns='{value}' can only be used with generator functions (functions that use 'yield'). "
            "The decorated function is not a generator function."
        )


# ---- what checked options mean ----


def fixed(quantity: float) -> int:
    """A resource amount in units of 1/10,000. ValueError for what is no such amount."""
    if not abs(quantity) <= MAX_QUANTITY:
        raise ValueError(f"The quantity of a resource must be a number up to {MAX_QUANTITY}, not {quantity}")
    return round(quantity * UNIT)


def resources_of(options: Mapping[str, Any]) -> dict[str, int]:
    """The resources that options ask for, without defaults; zero amounts are kept for CPU only.

    ValueError for more than one device and a share of another.
    """
    out: dict[str, int] = {}
    for option, resource in (("num_cpus", "CPU"), ("num_gpus", "GPU"), ("memory", "memory")):
        amount = options.get(option)
        if amount is not None:
            out[resource] = fixed(int(amount) if resource == "memory" else amount)
    for name, amount in (options.get("resources") or {}).items():
        out[name] = fixed(amount)
    accelerator = options.get("accelerator_type")
    if accelerator is not None:
        out[f"accelerator_type:{accelerator}"] = ACCELERATOR_TYPE_AMOUNT
    for name in WHOLE_DEVICES & out.keys():
        if out[name] > UNIT and out[name] % UNIT:
            raise ValueError(
                f"{name} must be an integer or a fraction below 1: {out[name] / UNIT:g} cannot be taken "
                "(a task or actor shares one device or has several for itself)"
            )
    return {name: amount for name, amount in out.items() if amount or name == "CPU"}


def strategy_of(options: Mapping[str, Any], captured: Any = None) -> SchedulingStrategy | None:
    """The scheduling strategy of options; None for the default one.

    `captured` is the placement group that the surrounding task hands down, if any; an explicit
    strategy wins over it.
    """
    selector = options.get("label_selector")
    fallbacks = options.get("fallback_strategy")
    strategy = _placement(options, captured)
    if strategy in (None, "DEFAULT") and not selector and not fallbacks:
        return None
    from miniray._proto import common_pb2 as pb

    out = pb.SchedulingStrategy()
    if strategy == "SPREAD":
        out.spread = True
    elif isinstance(strategy, strategies.NodeAffinitySchedulingStrategy):
        out.affinity.node_id = bytes.fromhex(strategy.node_id)
        out.affinity.soft = strategy.soft
        out.affinity.spill_on_unavailable = strategy._spill_on_unavailable
        out.affinity.fail_on_unavailable = strategy._fail_on_unavailable
    elif isinstance(strategy, strategies.NodeLabelSchedulingStrategy):
        for key, operator in strategy.hard.items():
            labels.add_expression(out.labels.add(), key, operator)
        for key, operator in strategy.soft.items():
            labels.add_expression(out.soft_labels.add(), key, operator)
    elif isinstance(strategy, strategies.PlacementGroupSchedulingStrategy):
        assert strategy.placement_group is not None
        out.bundle.placement_group_id = strategy.placement_group.id.binary()
        out.bundle.bundle_index = strategy.placement_group_bundle_index
        out.bundle.capture_child_tasks = bool(strategy.placement_group_capture_child_tasks)
    elif strategy not in (None, "DEFAULT"):
        raise ValueError(
            f"Invalid scheduling strategy {strategy!r}: expected None, 'DEFAULT', 'SPREAD' or an object of "
            "util.scheduling_strategies."
        )
    labels.add_selector(out.labels, selector)
    for fallback in fallbacks or ():
        labels.add_selector(out.fallbacks.add().matches, fallback.get("label_selector"))
    return out


def _placement(options: Mapping[str, Any], captured: Any) -> Any:
    """The strategy object or name, with the older placement_group options folded in."""
    strategy = options.get("scheduling_strategy")
    if isinstance(strategy, strategies.PlacementGroupSchedulingStrategy):
        group = strategy.placement_group
        if group is None or group.is_empty:
            check_index(group, strategy.placement_group_bundle_index)
            return None
        check_index(group, strategy.placement_group_bundle_index)
        return strategy
    if strategy is not None:
        return strategy
    group = options.get("placement_group", "default")
    if group not in ("default", None):
        warnings.warn(
            "placement_group parameter is deprecated. Use "
            "scheduling_strategy=PlacementGroupSchedulingStrategy(...) instead.",
            DeprecationWarning,
            stacklevel=6,
        )
    index = options.get("placement_group_bundle_index", -1)
    capture = options.get("placement_group_capture_child_tasks")
    if group == "default":
        group = None if capture is False else captured
        capture = capture if capture is not None else captured is not None
    check_index(group, index)
    if group is None or group.is_empty:
        return None
    return strategies.PlacementGroupSchedulingStrategy(group, index, capture)


def check_index(group: Any, index: int) -> None:
    """ValueError when a placement group (None: none) has no such bundle; -1 means any."""
    if group is None or group.is_empty:
        if index != -1:
            raise ValueError("If placement group is not set, the value of bundle index must be -1.")
    elif not -1 <= index < group.bundle_count:
        raise ValueError(
            f"placement group bundle index {index} is invalid. Valid placement group indexes: "
            f"0-{group.bundle_count - 1}"
        )


def runtime_env_of(own: Mapping[str, Any] | None, inherited: str) -> str:
    """Canonical JSON of a task's runtime_env: its own fields over those of the job or parent."""
    if not own:
        return inherited
    from miniray.runtime_env import runtime_env

    return runtime_env.inherited(own, inherited)


def check_fits(
    options: Mapping[str, Any],
    captured: Any,
    resources: Mapping[str, int],
    creation: Mapping[str, int],
    name: str,
) -> None:
    """ValueError when no bundle of the placement group can hold what is asked for."""
    strategy = _placement(options, captured)
    if not isinstance(strategy, strategies.PlacementGroupSchedulingStrategy):
        return
    assert strategy.placement_group is not None
    bundles = strategy.placement_group.bundle_specs
    for wanted, what in ((resources, "the resource request"), ({**resources, **creation}, "its creation")):
        if not any(all(fixed(bundle.get(k, 0)) >= v for k, v in wanted.items()) for bundle in bundles):
            amounts = {key: amount / UNIT for key, amount in wanted.items()}
            shown = {key: int(n) if n.is_integer() else n for key, n in amounts.items()}
            raise ValueError(
                f"Cannot schedule {name} with the placement group because {what} {shown} cannot fit into "
                f"any bundles for the placement group, {bundles}."
            )

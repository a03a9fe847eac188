"""Where a task or actor may run: the objects that the option `scheduling_strategy` takes.

Besides these, the option takes None, "DEFAULT" (pack, then spread) and "SPREAD".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from miniray.util.placement_group import PlacementGroup


class PlacementGroupSchedulingStrategy:
    """Run inside a placement group.

    `placement_group_bundle_index` -1 means any bundle. With `placement_group_capture_child_tasks`
    what the task starts runs in the same group, unless it says otherwise.
    """

    def __init__(
        self,
        placement_group: PlacementGroup | None,
        placement_group_bundle_index: int = -1,
        placement_group_capture_child_tasks: bool | None = None,
    ) -> None:
        self.placement_group = placement_group
        self.placement_group_bundle_index = placement_group_bundle_index
        self.placement_group_capture_child_tasks = placement_group_capture_child_tasks


class NodeAffinitySchedulingStrategy:
    """Run on one node (hex id).

    With `soft` the task runs elsewhere when that node is gone or can never hold it; without, it
    fails then. ValueError when the id is not the hex form of a node id.
    """

    def __init__(
        self,
        node_id: str,
        soft: bool,
        _spill_on_unavailable: bool = False,
        _fail_on_unavailable: bool = False,
    ) -> None:
        self.node_id = node_id if isinstance(node_id, str) else node_id.hex()
        self.soft = soft
        self._spill_on_unavailable = _spill_on_unavailable
        self._fail_on_unavailable = _fail_on_unavailable
        self._check()

    def _check(self) -> None:
        try:
            raw = bytes.fromhex(self.node_id)
        except ValueError:
            raw = b""
        if len(raw) != 28 or raw == b"\xff" * 28:
            raise ValueError(
                f"Invalid node_id '{self.node_id}'. Node ID must be a valid hex string. "
                "`nodes()` lists the ids of all nodes."
            )
        if self._spill_on_unavailable and not self.soft:
            raise ValueError(
                "_spill_on_unavailable cannot be set when soft is False. "
                "Please set soft to True to use _spill_on_unavailable."
            )
        if self._fail_on_unavailable and self.soft:
            raise ValueError(
                "_fail_on_unavailable cannot be set when soft is True. "
                "Please set soft to False to use _fail_on_unavailable."
            )


class _Values:
    """An operator with values."""

    def __init__(self, *values: str) -> None:
        name = type(self).__name__
        example = f'{name}("value1", "value2")'
        if not values:
            raise ValueError(
                f"The variadic parameter of the {name} operator must be a non-empty tuple: e.g. {example}."
            )
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise ValueError(
                    f"Type of value in position {index} for the {name} operator must be str "
                    f"(e.g. {example}) but got {value} of type {type(value)}."
                )
        self.values = list(values)


class In(_Values):
    """The label has one of these values."""


class NotIn(_Values):
    """The label has none of these values."""


class Exists:
    """The node has the label."""


class DoesNotExist:
    """The node does not have the label."""


LabelOperator = In | NotIn | Exists | DoesNotExist
LabelMatchExpressionsT = dict[str, LabelOperator]


class NodeLabelSchedulingStrategy:
    """Run on a node whose labels match `hard`; among those, rather on one that matches `soft`.

    Example: ``NodeLabelSchedulingStrategy({"region": In("us"), "gpu_type": Exists()})``.
    """

    def __init__(self, hard: LabelMatchExpressionsT, *, soft: LabelMatchExpressionsT | None = None) -> None:
        self.hard = _checked(hard, "hard")
        self.soft = _checked(soft, "soft")
        if not (self.hard or self.soft):
            raise ValueError(
                "The `hard` and `soft` parameter of NodeLabelSchedulingStrategy cannot both be empty."
            )


def _checked(expressions: LabelMatchExpressionsT | None, parameter: str) -> LabelMatchExpressionsT:
    if expressions is None:
        return {}
    if not isinstance(expressions, dict):
        raise ValueError(
            f'The {parameter} parameter must be a map (e.g. {{"key1": In("value1")}}) '
            f"but got type {type(expressions)}."
        )
    for key, operator in expressions.items():
        if not isinstance(key, str):
            raise ValueError(
                f"The map key of the {parameter} parameter must be of type str "
                f"(e.g. {{'key1': In('value1')}}) but got {key} of type {type(key)}."
            )
        if not isinstance(operator, (In, NotIn, Exists, DoesNotExist)):
            raise ValueError(
                f"The map value for key {key} of the {parameter} parameter must be one of the `In`, `NotIn`, "
                f'`Exists` or `DoesNotExist` operator (e.g. {{"key1": In("value1")}}) '
                f"but got {operator} of type {type(operator)}."
            )
    return expressions


SchedulingStrategyT = (
    str
    | PlacementGroupSchedulingStrategy
    | NodeAffinitySchedulingStrategy
    | NodeLabelSchedulingStrategy
    | None
)

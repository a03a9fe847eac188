"""`StateApiClient`: the state API by the name of what is asked for."""

from __future__ import annotations

from typing import Any

from miniray.util import state
from miniray.util.state.common import (
    GetApiOptions,
    ListApiOptions,
    StateResource,
    SummaryApiOptions,
    SummaryResource,
)

_ONE = {
    StateResource.ACTORS: state.get_actor,
    StateResource.JOBS: state.get_job,
    StateResource.NODES: state.get_node,
    StateResource.OBJECTS: state.get_objects,
    StateResource.PLACEMENT_GROUPS: state.get_placement_group,
    StateResource.TASKS: state.get_task,
    StateResource.WORKERS: state.get_worker,
}


class StateApiClient:
    """Lists, gets and summarizes what is in the cluster that this process is connected to.

    `address` is accepted for Ray's sake: the session's cluster answers. `StateApiClient` holds
    nothing, and needs no closing.
    """

    def __init__(self, address: str | None = None, cookies: Any = None, headers: Any = None) -> None:
        self.address = address

    def list(
        self,
        resource: StateResource,
        options: ListApiOptions | None = None,
        raise_on_missing_output: bool = True,
        _explain: bool = False,
    ) -> list[Any]:
        """Rows of one kind; RayStateApiException where some would be missing."""
        asked = options or ListApiOptions()
        rows: list[Any] = getattr(state, f"list_{resource.value}")(
            address=self.address,
            filters=asked.filters,
            limit=asked.limit,
            timeout=asked.timeout,
            detail=asked.detail,
            raise_on_missing_output=raise_on_missing_output,
        )
        return rows

    def get(
        self, resource: StateResource, id: str, options: GetApiOptions | None = None, _explain: bool = False
    ) -> Any:
        """The row with this id (hex), None where there is none; a list for objects and retried tasks."""
        timeout = (options or GetApiOptions()).timeout
        return _ONE[resource](id, address=self.address, timeout=timeout)

    def summary(
        self,
        resource: SummaryResource,
        options: SummaryApiOptions | None = None,
        raise_on_missing_output: bool = True,
        _explain: bool = False,
    ) -> dict[str, Any]:
        """Counts by function, class or call site."""
        found: dict[str, Any] = getattr(state, f"summarize_{resource.value}")(
            address=self.address,
            timeout=(options or SummaryApiOptions()).timeout,
            raise_on_missing_output=raise_on_missing_output,
        )
        return found

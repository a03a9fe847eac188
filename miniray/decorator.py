"""`@remote`: makes a remote function of a function, an actor class of a class."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from miniray import options
from miniray.actor import ActorClass
from miniray.remote_function import RemoteFunction, is_generator

if TYPE_CHECKING:
    from miniray.typed import remote as remote
else:

    def remote(*args: Any, **kwargs: Any) -> Any:
        """Make calls of a function run as tasks, or instances of a class live as actors.

        Used bare (``@remote``) or with options (``@remote(num_cpus=2, max_retries=5)``); both
        kinds take num_cpus, num_gpus, memory, resources, accelerator_type, label_selector,
        scheduling_strategy, runtime_env and name. Functions also take num_returns, max_retries,
        retry_exceptions, max_calls and priority; classes also namespace, lifetime, get_if_exists,
        max_restarts, max_task_retries, max_pending_calls, max_concurrency, concurrency_groups and
        allow_out_of_order_execution. TypeError or ValueError for wrong ones.
        """
        if len(args) == 1 and not kwargs and callable(args[0]):
            return _make(args[0], {})
        if args or not kwargs:
            raise TypeError(options.REMOTE_ERROR) if not args else AssertionError(options.REMOTE_ERROR)
        return lambda target: _make(target, dict(kwargs))


def _make(target: Any, chosen: dict[str, Any]) -> Any:
    if inspect.isclass(target):
        options.validate_actor(chosen, in_options=False)
        return ActorClass(target, chosen)
    if inspect.isfunction(target) or inspect.isbuiltin(target):
        options.validate_task(chosen, in_options=False, is_generator=is_generator(target))
        return RemoteFunction(target, chosen)
    raise TypeError("The @ray.remote decorator must be applied to either a function or a class.")

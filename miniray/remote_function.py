"""Remote functions: what `@remote` makes of a function, and its typed faces.

`f.remote(…)` checks the arguments against the signature and hands them to the worker library
with a template that was resolved once per session; nothing else happens on that path. `.options`
returns a variant with its own template; variants are kept, so that `f.options(…).remote()` in a
loop resolves its options once.

Typing: no type expresses "each argument, or an ObjectRef to it", so `RemoteFunction0…10` have the
positional parameters one by one; keyword arguments are not checked by type checkers.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from miniray import api, config, options, signatures
from miniray.core.tasks import DYNAMIC, STREAMING, TaskTemplate

if TYPE_CHECKING:
    from miniray.runtime.worker import CoreWorker

R = TypeVar("R", covariant=True)

VARIANTS_KEPT = 64
"""Variants of one function that `.options` remembers."""


def num_returns_of(value: Any, is_generator: bool) -> int:
    """The template's form of the option `num_returns`."""
    if value is None:
        return STREAMING if is_generator else 1
    if value == "streaming":
        return STREAMING
    return DYNAMIC if value == "dynamic" else int(value)


def is_generator(function: Callable[..., Any]) -> bool:
    """True for functions that yield, synchronously or not."""
    function = inspect.unwrap(function)
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def retries_of(value: Any) -> bool | tuple[type[BaseException], ...]:
    """The template's form of the option `retry_exceptions`."""
    return tuple(value) if isinstance(value, (list, tuple)) else bool(value)


def variant_key(chosen: dict[str, Any]) -> tuple[tuple[str, Any], ...] | None:
    """A dictionary key for a set of options; None when they cannot be one."""
    key = tuple(sorted(chosen.items(), key=lambda item: item[0]))
    try:
        hash(key)
    except TypeError:
        return None
    return key


class RemoteFunction(Generic[R]):
    """A function whose calls run as tasks. Made by `@remote`.

    `remote(*args, **kwargs)` submits a task and returns an ObjectRef of its result (a list of
    them for `num_returns` > 1, a generator for streaming tasks, None for 0).
    """

    def __init__(self, function: Callable[..., Any], task_options: dict[str, Any]) -> None:
        if inspect.iscoroutinefunction(function):
            raise ValueError(
                "'async def' should not be used for remote tasks. You can wrap the async function with "
                "`asyncio.run(f())`."
            )
        self._function = function
        self._default_options = task_options
        if task_options.get("num_gpus") and task_options.get("max_calls") is None:
            task_options["max_calls"] = 1  # so that the process gives the device's memory back
        self._set_up()

    def _set_up(self) -> None:
        function = self._function
        self._function_name = f"{function.__module__}.{function.__name__}"
        self._is_generator = is_generator(function)
        self._decorator = getattr(function, "__ray_invocation_decorator__", None)
        self._signature = signatures.of_function(function)
        self._worker: CoreWorker | None = None
        self._template: TaskTemplate | None = None
        self._captured: dict[Any, TaskTemplate] = {}
        self._variants: dict[Any, RemoteFunction[Any]] = {}
        functools.update_wrapper(self, function, updated=())
        self.remote = functools.wraps(function)(self._make_remote())

    def _make_remote(self) -> Callable[..., Any]:
        connected_worker = api.connected_worker
        signature = self._signature
        decorator = self._decorator

        def submit(*args: Any, **kwargs: Any) -> Any:
            worker = connected_worker()
            if kwargs or not signature.lowest <= len(args) <= signature.highest:
                signature.check(args, kwargs)
            template = self._template
            if worker is not self._worker or template is None:
                template = self._bind(worker)
            if not worker.is_driver:
                template = self._in_context(worker, template)
            return worker.submit_task(template, args, kwargs)

        if decorator is not None:
            invocation = decorator(lambda args, kwargs: submit(*args, **kwargs))
            return lambda *args, **kwargs: invocation(args, kwargs)
        return submit

    def _bind(self, worker: CoreWorker) -> TaskTemplate:
        """Resolve the options for this session."""
        self._captured.clear()
        self._template = self._resolve(worker, None)
        self._worker = worker
        return self._template

    def _resolve(self, worker: CoreWorker, captured: Any) -> TaskTemplate:
        chosen = self._default_options
        retries = chosen.get("max_retries")
        resources = options.resources_of(chosen)
        if chosen.get("num_cpus") is None:
            resources["CPU"] = options.UNIT
        backpressure = chosen.get("_generator_backpressure_num_objects")
        name = chosen.get("name") or self._function.__name__
        options.check_fits(chosen, captured, resources, {}, self._function.__qualname__)
        return TaskTemplate(
            function=self._function,
            name=name,
            num_returns=num_returns_of(chosen.get("num_returns"), self._is_generator),
            resources={resource: amount for resource, amount in resources.items() if amount},
            strategy=options.strategy_of(chosen, captured),
            runtime_env=api.runtime_env_for(worker, chosen.get("runtime_env")),
            max_retries=config.get("task_max_retries") if retries is None else retries,
            retry_exceptions=retries_of(chosen.get("retry_exceptions") or False),
            max_calls=chosen.get("max_calls") or 0,
            priority=chosen.get("priority") or 0,
            generator_backpressure=config.get("backpressure_objects")
            if backpressure is None
            else backpressure,
        )

    def _in_context(self, worker: CoreWorker, template: TaskTemplate) -> TaskTemplate:
        """The template inside a task that hands its placement group down, if this one does."""
        group = api.captured_group(worker)
        if group is None or template.strategy is not None:
            return template
        found = self._captured.get(group)
        if found is None:
            found = self._captured[group] = self._resolve(worker, group)
        return found

    def options(self, **task_options: Any) -> RemoteFunction[R]:
        """This function with other options. ValueError or TypeError for wrong ones."""
        key = variant_key(task_options)
        variant = self._variants.get(key) if key is not None else None
        if variant is not None:
            return variant
        default = {name: value for name, value in self._default_options.items() if name != "max_calls"}
        if "_num_objects_per_yield" in task_options:
            raise ValueError("_num_objects_per_yield cannot be overridden per task call.")
        merged = {**default, **task_options}
        checked = self._is_generator if "num_returns" in task_options else None
        options.validate_task(merged, in_options=True, is_generator=checked)
        if "max_calls" in self._default_options:
            merged["max_calls"] = self._default_options["max_calls"]
        variant = RemoteFunction.__new__(RemoteFunction)
        variant._function = self._function
        variant._default_options = merged
        variant._set_up()
        if key is not None:
            if len(self._variants) >= VARIANTS_KEPT:
                del self._variants[next(iter(self._variants))]
            self._variants[key] = variant
        return variant

    def _remote(self, args: Any = None, kwargs: Any = None, **task_options: Any) -> Any:
        """`options(**task_options).remote(*args, **kwargs)` in one call."""
        chosen = self.options(**task_options) if task_options else self
        return chosen.remote(*(args or ()), **(kwargs or {}))

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """A node of a graph (`miniray.dag`) that is this call."""
        from miniray.dag import FunctionNode

        return FunctionNode(self, args, kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"Remote functions cannot be called directly. Instead of running '{self._function_name}()', "
            f"try '{self._function_name}.remote()'."
        )

    def __repr__(self) -> str:
        return f"<remote function {self._function_name}>"

    def __reduce__(self) -> Any:
        # In two steps, because a function may refer to itself.
        return _blank, (), (self._function, self._default_options)

    def __setstate__(self, state: tuple[Any, dict[str, Any]]) -> None:
        self._function, self._default_options = state
        self._set_up()


def _blank() -> RemoteFunction[Any]:
    return RemoteFunction.__new__(RemoteFunction)

"""Methods of actors: `@method`, what callers know of each, and the objects that call them.

`MethodInfo` is the template of a method with its signature; `ActorMethod` joins it to a handle.
The path of a call is one signature check and `submit_actor_task`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from miniray import _native, config, options, signatures
from miniray.core.tasks import MethodTemplate
from miniray.remote_function import is_generator, num_returns_of, retries_of, variant_key

if TYPE_CHECKING:
    from miniray.actor import ActorHandle

F = TypeVar("F", bound=Callable[..., Any])

VARIANTS_KEPT = 64
"""Variants of one method that `.options` remembers."""

METHOD_OPTIONS = (
    "num_returns",
    "concurrency_group",
    "max_task_retries",
    "retry_exceptions",
    "enable_task_events",
    "_generator_backpressure_num_objects",
    "_num_objects_per_yield",
    "tensor_transport",
)

_ATTRIBUTE = "__ray_method_options__"


if TYPE_CHECKING:
    from miniray.typed_methods import method as method
else:

    def method(*args: Any, **kwargs: Any) -> Any:
        """Set the default options of an actor's method: ``@method(num_returns=2)``.

        Takes num_returns, concurrency_group, max_task_retries, retry_exceptions, enable_task_events
        and _generator_backpressure_num_objects; AssertionError for anything else.
        """

        def annotate(function: F) -> F:
            if "num_returns" in kwargs:
                options.check_num_returns(kwargs["num_returns"], is_generator(function))
            setattr(function, _ATTRIBUTE, {**getattr(function, _ATTRIBUTE, {}), **kwargs})
            return function

        if len(args) == 1 and callable(args[0]) and not kwargs:
            return annotate(args[0])
        assert not args, (
            "The @ray.method decorator must be applied using no arguments or at least one of the arguments "
            f"in the list {METHOD_OPTIONS}, for example '@ray.method(num_returns=2)'."
        )
        for name in kwargs:
            assert name in METHOD_OPTIONS, (
                f"Unexpected keyword argument to @ray.method: '{name}'. "
                f"The supported keyword arguments are {METHOD_OPTIONS}"
            )
        return annotate


class MethodInfo(MethodTemplate):
    """One method as its callers need to know it: the template, its signature and its default."""

    __slots__ = ("decorator", "generator", "label", "signature", "variants")

    def __init__(
        self,
        template: MethodTemplate,
        signature: signatures.Signature,
        generator: bool,
        decorator: Callable[..., Any] | None = None,
        label: str = "",
    ) -> None:
        super().__init__(
            template.name,
            template.num_returns,
            template.concurrency_group,
            template.max_task_retries,
            template.retry_exceptions,
            template.enable_task_events,
            template.generator_backpressure,
        )
        self.signature = signature
        self.generator = generator
        self.decorator = decorator
        self.label = label
        self.variants: dict[Any, MethodInfo] = {}

    def __reduce__(self) -> Any:
        template = MethodTemplate(
            self.name,
            self.num_returns,
            self.concurrency_group,
            self.max_task_retries,
            self.retry_exceptions,
            self.enable_task_events,
            self.generator_backpressure,
        )
        return MethodInfo, (template, self.signature, self.generator, self.decorator, self.label)

    def with_options(self, chosen: dict[str, Any]) -> MethodInfo:
        """This method with other options; variants are remembered."""
        key = variant_key(chosen)
        found = self.variants.get(key) if key is not None else None
        if found is not None:
            return found
        template = _apply(self, chosen, self.generator)
        label = chosen.get("name") or self.label
        found = MethodInfo(template, self.signature, self.generator, self.decorator, label)
        if key is not None and len(self.variants) < VARIANTS_KEPT:
            self.variants[key] = found
        return found


def _apply(base: MethodTemplate, chosen: dict[str, Any], generator: bool) -> MethodTemplate:
    """`base` with options of @method or `.options`; ValueError or TypeError for wrong ones."""
    unknown = set(chosen) - {*METHOD_OPTIONS, "name", "_labels"}
    if unknown:
        raise TypeError(
            f"Invalid option keyword {min(unknown)} for actor methods. Valid ones are {METHOD_OPTIONS}."
        )
    for name in ("num_returns", "retry_exceptions", "_generator_backpressure_num_objects"):
        if chosen.get(name) is not None:
            options.task_options[name].validate(name, chosen[name])
    out = MethodTemplate(
        base.name,
        base.num_returns,
        base.concurrency_group,
        base.max_task_retries,
        base.retry_exceptions,
        base.enable_task_events,
        base.generator_backpressure,
    )
    if chosen.get("num_returns") is not None:
        out.num_returns = num_returns_of(chosen["num_returns"], generator)
    if chosen.get("concurrency_group") is not None:
        out.concurrency_group = chosen["concurrency_group"]
    if chosen.get("max_task_retries") is not None:
        out.max_task_retries = chosen["max_task_retries"]
    if chosen.get("retry_exceptions") is not None:
        out.retry_exceptions = retries_of(chosen["retry_exceptions"])
    if chosen.get("enable_task_events") is not None:
        out.enable_task_events = chosen["enable_task_events"]
    if chosen.get("_generator_backpressure_num_objects") is not None:
        out.generator_backpressure = chosen["_generator_backpressure_num_objects"]
    return out


def _is_static(cls: type, name: str) -> bool:
    for base in inspect.getmro(cls):
        if name in base.__dict__:
            return isinstance(base.__dict__[name], (staticmethod, classmethod))
    return False


def _method_info(cls: type, name: str, function: Callable[..., Any]) -> MethodInfo:
    inner = inspect.unwrap(function)
    static = _is_static(cls, name) or inspect.ismethod(inner)
    signature = signatures.of_function(inner) if static else signatures.of_method(inner)
    generator = is_generator(inner)
    base = MethodTemplate(
        name,
        num_returns_of(None, generator),
        generator_backpressure=config.get("backpressure_objects"),
    )
    template = _apply(base, getattr(inner, _ATTRIBUTE, {}), generator)
    decorator = getattr(inner, "__ray_invocation_decorator__", None)
    return MethodInfo(template, signature, generator, decorator, f"{cls.__name__}.{name}")


def methods_of(cls: type) -> dict[str, MethodInfo]:
    """Every method of a class, and the three that all actors have."""
    found = {
        name: _method_info(cls, name, function)
        for name, function in inspect.getmembers(cls, lambda x: inspect.isfunction(x) or inspect.ismethod(x))
    }
    for name in ("__ray_ready__", "__ray_call__", "__ray_terminate__"):
        label = f"{cls.__name__}.{name}"
        found.setdefault(name, MethodInfo(MethodTemplate(name), signatures.ANYTHING, False, label=label))
    return found


class ActorMethod(_native.BoundBase):
    """One method of one actor; `remote(…)` calls it."""

    __slots__ = ()
    _actor: ActorHandle[Any]
    _info: MethodInfo

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method. Returns an ObjectRef of its result, a list of them, a generator or None.

        TypeError when the arguments do not fit; PendingCallsLimitExceeded when too many calls of
        this caller wait.
        """
        info = self._info
        if info.decorator is not None:
            return info.decorator(self._submit)(args, kwargs)
        signature = info.signature
        if kwargs or not signature.lowest <= len(args) <= signature.highest:
            signature.check(args, kwargs)
        actor = self._actor
        worker = actor._ray_worker
        if worker.closing:
            worker = actor._ray_rejoin()
        return worker.submit_actor_task(actor._ray_client, info, args, kwargs)

    def _submit(self, args: Any, kwargs: Any) -> Any:
        self._info.signature.check(tuple(args), kwargs)
        actor = self._actor
        return actor._ray_rejoin().submit_actor_task(actor._ray_client, self._info, tuple(args), kwargs)

    def options(self, **chosen: Any) -> ActorMethod:
        """This method with other options (those of `@method`, and `name`)."""
        if "_num_objects_per_yield" in chosen:
            raise ValueError("_num_objects_per_yield cannot be overridden per actor method call.")
        if "num_returns" in chosen:
            options.check_num_returns(chosen["num_returns"], self._info.generator)
        return ActorMethod(self._actor, self._info.with_options(chosen))

    def _remote(self, args: Any = None, kwargs: Any = None, **chosen: Any) -> Any:
        """`options(**chosen).remote(*args, **kwargs)` in one call."""
        method = self.options(**chosen) if chosen else self
        return method.remote(*(args or ()), **(kwargs or {}))

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """A node of a graph (`miniray.dag`) that is this call."""
        from miniray.dag import ClassMethodNode

        return ClassMethodNode(self._actor, self._info.name, args, kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        name = self._info.name
        raise TypeError(
            f"Actor methods cannot be called directly. Instead of running 'object.{name}()', "
            f"try 'object.{name}.remote()'."
        )

    def __reduce__(self) -> Any:
        return ActorMethod, (self._actor, self._info)

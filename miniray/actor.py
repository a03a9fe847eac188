"""Actor classes, handles and methods.

`@remote` makes an `ActorClass` of a class. `Class.remote(…)` creates an actor and returns an
`ActorHandle`; `handle.method.remote(…)` calls it. A handle may be passed to tasks and actors;
the actor ends when its creator's side has no handle left (detached and named ones aside), after
the calls already made. Handles from `get_actor` do not keep an actor alive.

A handle is its actor id, the table of methods and a counted reference (its token). It holds no
references to its `ActorMethod`s, so it dies with its last use and not when the collector comes by.
"""

from __future__ import annotations

import functools
import inspect
import logging
import warnings
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, Union

from miniray import _native, api, options, signatures
from miniray.actor_method import ActorMethod, MethodInfo, method, methods_of
from miniray.core.tasks import ActorTemplate
from miniray.exceptions import ActorAlreadyExistsError
from miniray.ids import ActorID, UncountedRef
from miniray.remote_function import variant_key

if TYPE_CHECKING:
    from miniray.ids import ObjectRef
    from miniray.runtime.worker import CoreWorker

T = TypeVar("T")

logger = logging.getLogger(__name__)

ASYNC_CONCURRENCY = 1000
"""Calls that an asyncio actor runs at once unless `max_concurrency` says otherwise."""


class ActorClassInheritanceException(TypeError):
    """An actor class was used as a base class."""


def _is_async(cls: type) -> bool:
    def asynchronous(member: Any) -> bool:
        member = inspect.unwrap(member) if callable(member) else member
        return inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member)

    return bool(inspect.getmembers(cls, asynchronous))


class ActorClassMetadata:
    """What is known of an actor class: `modified_class` is the user's class."""

    def __init__(self, cls: type) -> None:
        self.modified_class = cls
        self.class_name = cls.__name__
        self.methods = methods_of(cls)
        self.state = HandleState(cls.__name__, self.methods)
        self.is_async = _is_async(cls)
        constructor = cls.__init__  # type: ignore[misc]
        plain = constructor is object.__init__
        self.signature = signatures.Signature([]) if plain else signatures.of_method(constructor)


class ActorClass(Generic[T]):
    """A class whose instances are actors. Made by `@remote`; `remote(…)` creates one."""

    def __init__(self, cls: Any, actor_options: Any, namespace: Any = None) -> None:
        if not isinstance(cls, type):
            base = next(base for base in actor_options if isinstance(base, ActorClass))
            raise ActorClassInheritanceException(
                f"Attempted to define subclass '{cls}' of actor class '{base.__ray_metadata__.class_name}'. "
                "Inheriting from actor classes is not currently supported. You can instead inherit from a "
                "non-actor base class and make the derived class an actor class (with @ray.remote)."
            )
        for attribute in ("remote", "_remote", "options"):
            if hasattr(cls, attribute):
                logger.warning(
                    "Creating an actor from class %s overwrites attribute %s of that class",
                    cls.__name__,
                    attribute,
                )
        self._set_up(ActorClassMetadata(cls), actor_options)

    def _set_up(self, metadata: ActorClassMetadata, actor_options: dict[str, Any]) -> None:
        cls = metadata.modified_class
        self.__ray_metadata__ = metadata
        self._default_options = actor_options
        self._worker: CoreWorker | None = None
        self._template: ActorTemplate | None = None
        self._variants: dict[Any, ActorClass[T]] = {}
        functools.update_wrapper(self, cls, updated=())

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle[T]:
        """Create an actor; the arguments are its constructor's.

        Returns at once: errors of the constructor come with the first call. ValueError when the
        name is taken, TypeError when the arguments do not fit.
        """
        worker = api.connected_worker()
        chosen = self._default_options
        if chosen.get("get_if_exists"):
            known = api.find_actor(chosen["name"], chosen.get("namespace"))
            if known is not None:
                return known
            # There is none yet, or somebody makes it right now: the GCS decides.
        self.__ray_metadata__.signature.check(args, kwargs)
        template = self._template
        if worker is not self._worker or template is None:
            template = self._template = self._resolve(worker, None)
            self._worker = worker
        group = None if worker.is_driver or template.strategy is not None else api.captured_group(worker)
        if group is not None:
            template = self._resolve(worker, group)
        try:
            actor_id = worker.create_actor(template, args, kwargs)
        except ActorAlreadyExistsError:
            raise self._taken(template) from None
        token = worker.handle_token(actor_id)
        state = self.__ray_metadata__.state
        return state.handle_class(worker, actor_id, state, token)

    def _taken(self, template: ActorTemplate) -> ActorAlreadyExistsError:
        name, namespace = template.name, template.namespace
        return ActorAlreadyExistsError(
            f"The name {name} (namespace={namespace}) is already taken. Please use a different name "
            f"or get the existing actor using ray.get_actor('{name}', namespace='{namespace}')"
        )

    def _resolve(self, worker: CoreWorker, captured: Any) -> ActorTemplate:
        chosen = self._default_options
        metadata = self.__ray_metadata__
        _check_name(chosen)
        resources = options.resources_of(chosen)
        names = ("num_cpus", "num_gpus", "accelerator_type")
        specified = bool(chosen.get("resources")) or any(chosen.get(name) is not None for name in names)
        creation: dict[str, int] = {}
        if chosen.get("num_cpus") is None:
            resources["CPU"] = options.UNIT if specified else 0
        if not specified:
            creation["CPU"] = options.UNIT  # to be placed; given back once it lives
        options.check_fits(chosen, captured, resources, creation, metadata.modified_class.__qualname__)
        lifetime = chosen.get("lifetime") or ("detached" if worker.job.actors_outlive else "")
        concurrency = chosen.get("max_concurrency")
        out_of_order = self._order(chosen.get("allow_out_of_order_execution"), concurrency)
        return ActorTemplate(
            cls=metadata.modified_class,
            class_name=metadata.class_name,
            methods=metadata.methods,  # type: ignore[arg-type]  # dict is invariant
            resources={name: amount for name, amount in resources.items() if amount},
            creation_resources=creation,
            strategy=options.strategy_of(chosen, captured),
            runtime_env=api.runtime_env_for(worker, chosen.get("runtime_env")),
            name=chosen.get("name") or "",
            namespace=chosen.get("namespace"),
            detached=lifetime == "detached",
            get_if_exists=bool(chosen.get("get_if_exists")),
            max_restarts=min(chosen.get("max_restarts") or 0, 2**31 - 1),
            max_task_retries=chosen.get("max_task_retries") or 0,
            max_pending_calls=-1 if chosen.get("max_pending_calls") is None else chosen["max_pending_calls"],
            max_concurrency=(concurrency or ASYNC_CONCURRENCY) if metadata.is_async else concurrency,
            concurrency_groups=self._groups(),
            out_of_order=out_of_order,
            is_async=metadata.is_async,
            priority=chosen.get("priority") or 0,
        )

    def _order(self, wanted: bool | None, concurrency: int | None) -> bool:
        """Whether calls may start out of order; async and concurrent actors cannot keep it."""
        metadata = self.__ray_metadata__
        concurrent = (concurrency or 1) > 1
        if wanted is None:
            return metadata.is_async or concurrent
        if not wanted and (metadata.is_async or concurrent):
            kind = "async" if metadata.is_async else "multi-threaded"
            raise ValueError(
                f"If you're using {kind} actors, Ray can't execute actor tasks in order. Set "
                "`allow_out_of_order_execution=True` to allow out-of-order execution."
            )
        return wanted

    def _groups(self) -> dict[str, int]:
        groups = dict(self._default_options.get("concurrency_groups") or {})
        for info in self.__ray_metadata__.methods.values():
            assert not info.concurrency_group or info.concurrency_group in groups, (
                f"method {info.label} names the concurrency group '{info.concurrency_group}', "
                f"but the actor has {sorted(groups) or 'none'}"
            )
        for group, width in groups.items():
            if width < 1:
                raise ValueError(
                    f"max_concurrency must be greater than 0: the concurrency group '{group}' has {width}"
                )
        return groups

    def options(self, **actor_options: Any) -> ActorClass[T]:
        """This class with other options. ValueError or TypeError for wrong ones."""
        key = variant_key(actor_options)
        variant = self._variants.get(key) if key is not None else None
        if variant is not None:
            return variant
        groups = self._default_options.get("concurrency_groups")
        default = {k: v for k, v in self._default_options.items() if k != "concurrency_groups"}
        merged = {**default, **actor_options}
        options.validate_actor(merged, in_options=True)
        if groups is not None:
            merged["concurrency_groups"] = groups
        variant = ActorClass.__new__(ActorClass)
        variant._set_up(self.__ray_metadata__, merged)
        if key is not None and len(self._variants) < 64:
            self._variants[key] = variant
        return variant

    def _remote(self, args: Any = None, kwargs: Any = None, **actor_options: Any) -> ActorHandle[T]:
        """`options(**actor_options).remote(*args, **kwargs)` in one call."""
        chosen = self.options(**actor_options) if actor_options else self
        return chosen.remote(*(args or ()), **(kwargs or {}))

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """A node of a graph (`miniray.dag`) that creates this actor."""
        from miniray.dag import ClassNode

        return ClassNode(self, args, kwargs)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self.__ray_metadata__.modified_class)})

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        name = self.__ray_metadata__.class_name
        raise TypeError(
            f"Actors cannot be instantiated directly. Instead of '{name}()', use '{name}.remote()'."
        )

    def __getattr__(self, name: str) -> Any:
        """Attributes of the user's class: constants, static methods."""
        pickled = self.__dict__.get("_pickled")
        if pickled is not None and (name == "__ray_metadata__" or not name.startswith("__")):
            del self._pickled
            self._set_up(ActorClassMetadata(pickled[0]), pickled[1])
            return getattr(self, name)
        if pickled is not None or name in ("__ray_metadata__", "__mro_entries__"):
            raise AttributeError(name)
        return getattr(self.__ray_metadata__.modified_class, name)

    def __repr__(self) -> str:
        return f"ActorClass({self.__ray_metadata__.class_name})"

    def __reduce__(self) -> Any:
        # In two steps, because a class may refer to itself.
        return _blank, (), (self.__ray_metadata__.modified_class, self._default_options)

    def __setstate__(self, state: tuple[type, dict[str, Any]]) -> None:
        self._pickled = state   # looked at when first used: a class that names itself is not whole yet


def _blank() -> ActorClass[Any]:
    return ActorClass.__new__(ActorClass)


def _check_name(chosen: dict[str, Any]) -> None:
    name = chosen.get("name")
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be None or a string, got: '{type(name)}'.")
    if name == "":
        raise ValueError("Actor name cannot be an empty string.")
    if chosen.get("namespace") is not None:
        api.check_namespace(chosen["namespace"])
    if chosen.get("lifetime") == "detached" and not name and chosen.get("max_restarts"):
        warnings.warn("a detached actor without a name can be reached by its handles only", stacklevel=4)


class HandleState:
    """What all handles of one actor class share: its name, its methods and their packed form."""

    __slots__ = ("_packed", "class_name", "handle_class", "methods")

    def __init__(self, class_name: str, methods: dict[str, MethodInfo], packed: bytes = b"") -> None:
        self.class_name = class_name
        self.methods = methods
        self._packed = packed
        self.handle_class: type[ActorHandle[Any]] = type("ActorHandle", (ActorHandle,), {
            name: _native.Binder(ActorMethod, info)
            for name, info in methods.items()
            if not name.startswith("__") and not hasattr(ActorHandle, name)
        })
        """The type of the handles: what is found on it needs no failed look-up before."""

    @property
    def packed(self) -> bytes:
        """This state as bytes; made once."""
        if not self._packed:
            from miniray.runtime import values

            self._packed = values.dumps({"class_name": self.class_name, "methods": self.methods})
        return self._packed

    @staticmethod
    def unpack(packed: bytes) -> HandleState:
        """The state that was packed here or by the actor's creator; equal bytes share one."""
        found = _states.get(packed)
        if found is None:
            from miniray.runtime import values

            state = values.loads(packed)
            if len(_states) >= STATES_KEPT:
                del _states[next(iter(_states))]
            found = _states[packed] = HandleState(state["class_name"], state["methods"], packed)
        return found


STATES_KEPT = 256
_states: dict[bytes, HandleState] = {}


class ActorHandle(Generic[T]):
    """A handle to an actor: its methods are attributes, each with `.remote(…)`."""

    def __init__(
        self, worker: CoreWorker, actor_id: bytes, state: HandleState, token: ObjectRef[Any] | None
    ) -> None:
        self._ray_worker = worker
        self._ray_id = actor_id
        self._ray_state = state
        self._ray_methods = state.methods
        self._ray_client = worker.actor_client(actor_id)
        # Handles are counted as references to this object of the actor's creator: while any
        # process holds one, the actor lives. A weak handle has none.
        self._ray_token = token
        if token is not None and not self._ray_client.owned:
            self._ray_client.token = token.entry    # calls under way hold it as well

    def _ray_rejoin(self) -> CoreWorker:
        """The connected worker. A handle of an earlier session is refused."""
        worker = api.connected_worker()
        if worker is not self._ray_worker:
            raise api.stale_handle(self)
        return worker

    def __getattr__(self, name: str) -> Any:
        if name != "_ray_methods":  # else: not set up yet
            info = self._ray_methods.get(name)
            if info is not None:
                return ActorMethod(self, info)
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    @property
    def _actor_id(self) -> ActorID:
        return ActorID(self._ray_id)

    @property
    def _ray_actor_id(self) -> ActorID:
        return ActorID(self._ray_id)

    def _get_local_state(self) -> str | None:
        """The actor's state as this process knows it."""
        state: str | None = self._ray_client.state
        return state

    def __dir__(self) -> list[str]:
        return sorted({*self._ray_methods, "__init__"})

    def __repr__(self) -> str:
        return f"Actor({self._ray_state.class_name}, {self._ray_id.hex()})"

    def __hash__(self) -> int:
        return hash(self._ray_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and self._ray_id == other._ray_id

    def __reduce__(self) -> Any:
        token = None if self._ray_token is None else UncountedRef(self._ray_token)
        return restore_handle, (self._ray_id, self._ray_state.packed, token)


def restore_handle(actor_id: bytes, packed: bytes, token: ObjectRef[Any] | None = None) -> ActorHandle[Any]:
    """A handle in this process from what `__reduce__` or the GCS gave; weak without a token."""
    state = HandleState.unpack(packed)
    return state.handle_class(api.connected_worker(), actor_id, state, token)


ActorProxy = Union[ActorHandle[T], type[T]]  # noqa: UP007, not to be evaluated by Python 3.10 as types
"""What to annotate a handle with where its methods carry ``@method``: type checkers then know their calls."""


def exit_actor() -> NoReturn:
    """End the current actor on purpose, from inside one of its methods.

    The caller of that method, and calls not yet started, get an ActorDiedError. The actor's
    `__ray_shutdown__` and `atexit` handlers run. TypeError outside of an actor.
    """
    from miniray.runtime import worker as library

    current = library.current_or_none()
    context = current.task_context() if current is not None else None
    if context is None or not context.actor_id:
        raise TypeError(
            "exit_actor API is called on a non-actor worker. Call this API inside an actor's methods "
            "if you'd like to exit the actor gracefully."
        )
    from miniray.runtime import actor_exit

    assert current is not None
    actor_exit.request(current.executor)


__all__ = [
    "ActorClass",
    "ActorClassInheritanceException",
    "ActorHandle",
    "ActorMethod",
    "ActorProxy",
    "exit_actor",
    "method",
]

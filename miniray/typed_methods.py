"""What type checkers see of `@method`: still a method, and `.remote(…)` through an `ActorProxy`.

One class per number of parameters besides `self`, like `miniray.typed`; arguments of coroutine methods
and generators are not checked. Never imported at run time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, overload

from miniray.generator import ObjectRefGenerator
from miniray.ids import ObjectRef
from miniray.typed import (
    T1,
    T2,
    T3,
    T4,
    T5,
    T6,
    R,
    RemoteFunction0,
    RemoteFunction1,
    RemoteFunction2,
    RemoteFunction3,
    RemoteFunction4,
    RemoteFunction5,
    RemoteFunction6,
    WithOptions,
)

P = ParamSpec("P")
F = TypeVar("F", bound=Callable[..., Any])
Y = TypeVar("Y", covariant=True, bound="Iterator[Any] | AsyncIterator[Any]")


class Method0(RemoteFunction0[R], Protocol[R]):
    """No parameters."""

    def __call__(self) -> R: ...


class Method1(RemoteFunction1[R, T1], Protocol[R, T1]):
    """1 parameter."""

    def __call__(self, a1: T1 = ..., /, **kwargs: Any) -> R: ...


class Method2(RemoteFunction2[R, T1, T2], Protocol[R, T1, T2]):
    """2 parameters."""

    def __call__(self, a1: T1 = ..., a2: T2 = ..., /, **kwargs: Any) -> R: ...


class Method3(RemoteFunction3[R, T1, T2, T3], Protocol[R, T1, T2, T3]):
    """3 parameters."""

    def __call__(self, a1: T1 = ..., a2: T2 = ..., a3: T3 = ..., /, **kwargs: Any) -> R: ...


class Method4(RemoteFunction4[R, T1, T2, T3, T4], Protocol[R, T1, T2, T3, T4]):
    """4 parameters."""

    def __call__(self, a1: T1 = ..., a2: T2 = ..., a3: T3 = ..., a4: T4 = ..., /, **kwargs: Any) -> R: ...


class Method5(RemoteFunction5[R, T1, T2, T3, T4, T5], Protocol[R, T1, T2, T3, T4, T5]):
    """5 parameters."""

    def __call__(
        self, a1: T1 = ..., a2: T2 = ..., a3: T3 = ..., a4: T4 = ..., a5: T5 = ..., /, **kwargs: Any
    ) -> R: ...


class Method6(RemoteFunction6[R, T1, T2, T3, T4, T5, T6], Protocol[R, T1, T2, T3, T4, T5, T6]):
    """6 parameters."""

    def __call__(
        self, a1: T1 = ..., a2: T2 = ..., a3: T3 = ..., a4: T4 = ..., a5: T5 = ..., a6: T6 = ..., /,
        **kwargs: Any,
    ) -> R: ...


class CoroutineMethod(WithOptions, Protocol[P, R]):
    """An `async def`: a call from outside awaits it."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...

    def remote(self, *args: Any, **kwargs: Any) -> ObjectRef[R]: ...


class GeneratorMethod(WithOptions, Protocol[P, Y]):
    """A method that yields."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Y: ...

    def remote(self, *args: Any, **kwargs: Any) -> ObjectRefGenerator: ...


class AnyMethod(WithOptions, Protocol[P]):
    """A method of which no more is known."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any: ...

    def remote(self, *args: Any, **kwargs: Any) -> Any: ...


class RemoteMethod(WithOptions, Protocol[P, R]):
    """What the mypy plugin makes of an attribute of a handle: `remote` takes what the method takes."""

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> R: ...

    def bind(self, *args: Any, **kwargs: Any) -> Any: ...


class MethodDecorator(Protocol):
    """`method(option=…)`, waiting for its method."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]],
    ) -> CoroutineMethod[P, R]: ...

    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], Y]) -> GeneratorMethod[P, Y]: ...

    @overload
    def __call__(
        self, function: Callable[[Any, T1, T2, T3, T4, T5, T6], R],
    ) -> Method6[R, T1, T2, T3, T4, T5, T6]: ...

    @overload
    def __call__(
        self, function: Callable[[Any, T1, T2, T3, T4, T5], R],
    ) -> Method5[R, T1, T2, T3, T4, T5]: ...

    @overload
    def __call__(self, function: Callable[[Any, T1, T2, T3, T4], R]) -> Method4[R, T1, T2, T3, T4]: ...

    @overload
    def __call__(self, function: Callable[[Any, T1, T2, T3], R]) -> Method3[R, T1, T2, T3]: ...

    @overload
    def __call__(self, function: Callable[[Any, T1, T2], R]) -> Method2[R, T1, T2]: ...

    @overload
    def __call__(self, function: Callable[[Any, T1], R]) -> Method1[R, T1]: ...

    @overload
    def __call__(self, function: Callable[[Any], R]) -> Method0[R]: ...

    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], Any]) -> AnyMethod[P]: ...


class SeveralReturns(Protocol):
    """`method(num_returns=…)`: a call gives no single ObjectRef."""

    def __call__(self, function: Callable[Concatenate[Any, P], Any]) -> AnyMethod[P]: ...


@overload
def method(function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> CoroutineMethod[P, R]: ...


@overload
def method(function: Callable[Concatenate[Any, P], Y]) -> GeneratorMethod[P, Y]: ...


@overload
def method(function: Callable[[Any, T1, T2, T3, T4, T5, T6], R]) -> Method6[R, T1, T2, T3, T4, T5, T6]: ...


@overload
def method(function: Callable[[Any, T1, T2, T3, T4, T5], R]) -> Method5[R, T1, T2, T3, T4, T5]: ...


@overload
def method(function: Callable[[Any, T1, T2, T3, T4], R]) -> Method4[R, T1, T2, T3, T4]: ...


@overload
def method(function: Callable[[Any, T1, T2, T3], R]) -> Method3[R, T1, T2, T3]: ...


@overload
def method(function: Callable[[Any, T1, T2], R]) -> Method2[R, T1, T2]: ...


@overload
def method(function: Callable[[Any, T1], R]) -> Method1[R, T1]: ...


@overload
def method(function: Callable[[Any], R]) -> Method0[R]: ...


@overload
def method(function: Callable[Concatenate[Any, P], Any]) -> AnyMethod[P]: ...


@overload
def method(*, num_returns: int | Literal["dynamic", "streaming"], **options: Any) -> SeveralReturns: ...


@overload
def method(**options: Any) -> MethodDecorator: ...


def method(*args: Any, **kwargs: Any) -> Any:
    """See `miniray.actor_method.method`."""

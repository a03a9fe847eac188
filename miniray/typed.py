"""What type checkers see of a remote function: one class per number of positional parameters.

Each argument may be a value or an ObjectRef to one, and all of them may be left out (whether a
parameter has a default cannot be told here; the call itself checks it). Keyword arguments are not
checked. More than ten parameters make an `AnyRemoteFunction`. mypy does not follow class
decorators: ``Counter = remote(Counter)`` types actor classes there. Never imported at run time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol, TypeVar, overload

from miniray.actor import ActorClass
from miniray.generator import ObjectRefGenerator
from miniray.ids import ObjectRef

R = TypeVar("R", covariant=True)
S = TypeVar("S")
C = TypeVar("C")
T1 = TypeVar("T1", contravariant=True)
T2 = TypeVar("T2", contravariant=True)
T3 = TypeVar("T3", contravariant=True)
T4 = TypeVar("T4", contravariant=True)
T5 = TypeVar("T5", contravariant=True)
T6 = TypeVar("T6", contravariant=True)
T7 = TypeVar("T7", contravariant=True)
T8 = TypeVar("T8", contravariant=True)
T9 = TypeVar("T9", contravariant=True)
T10 = TypeVar("T10", contravariant=True)


class WithOptions(Protocol):
    """`options(…)` gives the same function, of which only `num_returns` changes what a call gives."""

    @overload
    def options(self, *, num_returns: int | str, **task_options: Any) -> AnyRemoteFunction: ...

    @overload
    def options(self: S, **task_options: Any) -> S: ...


class AnyRemoteFunction(WithOptions, Protocol):
    """A remote function of which no more is known."""

    def remote(self, *args: Any, **kwargs: Any) -> Any: ...


class RemoteGenerator(WithOptions, Protocol):
    """A remote function that yields."""

    def remote(self, *args: Any, **kwargs: Any) -> ObjectRefGenerator: ...


class RemoteFunction0(WithOptions, Protocol[R]):
    """0 positional parameters."""

    def remote(self) -> ObjectRef[R]: ...


class RemoteFunction1(WithOptions, Protocol[R, T1]):
    """1 positional parameter."""

    def remote(
        self,
        a1: T1 | ObjectRef[T1] = ...,
        /,
        **kwargs: Any,
    ) -> ObjectRef[R]: ...


class RemoteFunction2(WithOptions, Protocol[R, T1, T2]):
    """2 positional parameters."""

    def remote(
        self,
        a1: T1 | ObjectRef[T1] = ...,
        a2: T2 | ObjectRef[T2] = ...,
        /,
        **kwargs: Any,
    ) -> ObjectRef[R]: ...


class RemoteFunction3(WithOptions, Protocol[R, T1, T2, T3]):
    """3 positional parameters."""

    def remote(
        self,
        a1: T1 | ObjectRef[T1] = ...,
        a2: T2 | ObjectRef[T2] = ...,
        a3: T3 | ObjectRef[T3] = ...,
        /,
        **kwargs: Any,
    ) -> ObjectRef[R]: ...


class RemoteFunction4(WithOptions, Protocol[R, T1, T2, T3, T4]):
    """4 positional parameters."""

    def remote(
        self,
        a1: T1 | ObjectRef[T1] = ...,
        a2: T2 | ObjectRef[T2] = ...,
        a3: T3 | ObjectRef[T3] = ...,
        a4: T4 | ObjectRef[T4] = ...,
        /,
        **kwargs: Any,
    ) -> ObjectRef[R]: ...


class RemoteFunction5(WithOptions, Protocol[R, T1, T2, T3, T4, T5]):
    """5 positional parameters."""

    def remote(
        self,
        a1: T1 | ObjectRef[T1] = ...,
        a2: T2 | ObjectRef[T2] = ...,
        a3: T3 | ObjectRef[T3] = ...,
        a4: T4 | ObjectRef[T4] = ...,
        a5: T5 | ObjectRef[T5] = ...,
        /,
        **kwargs: Any,
    ) -> ObjectRef[R]: ...


class RemoteFunction6(WithOptions, Protocol[R, T1, T2, T3, T4, T5, T6]):
    """6 positional parameters."""

    def remote(
        self,
        a1: T1 | ObjectRef[T1] = ...,
        a2: T2 | ObjectRef[T2] = ...,
        a3: T3 | ObjectRef[T3] = ...,
        a4: T4 | ObjectRef[T4] = ...,
        a5: T5 | ObjectRef[T5] = ...,
        a6: T6 | ObjectRef[T6] = ...,
        /,
        **kwargs: Any,
    ) -> ObjectRef[R]: ...


class RemoteFunction7(WithOptions, Protocol[R, T1, T2, T3, T4, T5, T6, T7]):
    """7 positional parameters."""

    def remote(
        self,
        a1: T1 | ObjectRef[T1] = ...,
        a2: T2 | ObjectRef[T2] = ...,
        a3: T3 | ObjectRef[T3] = ...,
        a4: T4 | ObjectRef[T4] = ...,
        a5: T5 | ObjectRef[T5] = ...,
        a6: T6 | ObjectRef[T6] = ...,
        a7: T7 | ObjectRef[T7] = ...,
        /,
        **kwargs: Any,
    ) -> ObjectRef[R]: ...


class RemoteFunction8(WithOptions, Protocol[R, T1, T2, T3, T4, T5, T6, T7, T8]):
    """8 positional parameters."""

    def remote(
        self,
        a1: T1 | ObjectRef[T1] = ...,
        a2: T2 | ObjectRef[T2] = ...,
        a3: T3 | ObjectRef[T3] = ...,
        a4: T4 | ObjectRef[T4] = ...,
        a5: T5 | ObjectRef[T5] = ...,
        a6: T6 | ObjectRef[T6] = ...,
        a7: T7 | ObjectRef[T7] = ...,
        a8: T8 | ObjectRef[T8] = ...,
        /,
        **kwargs: Any,
    ) -> ObjectRef[R]: ...


class RemoteFunction9(WithOptions, Protocol[R, T1, T2, T3, T4, T5, T6, T7, T8, T9]):
    """9 positional parameters."""

    def remote(
        self,
        a1: T1 | ObjectRef[T1] = ...,
        a2: T2 | ObjectRef[T2] = ...,
        a3: T3 | ObjectRef[T3] = ...,
        a4: T4 | ObjectRef[T4] = ...,
        a5: T5 | ObjectRef[T5] = ...,
        a6: T6 | ObjectRef[T6] = ...,
        a7: T7 | ObjectRef[T7] = ...,
        a8: T8 | ObjectRef[T8] = ...,
        a9: T9 | ObjectRef[T9] = ...,
        /,
        **kwargs: Any,
    ) -> ObjectRef[R]: ...


class RemoteFunction10(WithOptions, Protocol[R, T1, T2, T3, T4, T5, T6, T7, T8, T9, T10]):
    """10 positional parameters."""

    def remote(
        self,
        a1: T1 | ObjectRef[T1] = ...,
        a2: T2 | ObjectRef[T2] = ...,
        a3: T3 | ObjectRef[T3] = ...,
        a4: T4 | ObjectRef[T4] = ...,
        a5: T5 | ObjectRef[T5] = ...,
        a6: T6 | ObjectRef[T6] = ...,
        a7: T7 | ObjectRef[T7] = ...,
        a8: T8 | ObjectRef[T8] = ...,
        a9: T9 | ObjectRef[T9] = ...,
        a10: T10 | ObjectRef[T10] = ...,
        /,
        **kwargs: Any,
    ) -> ObjectRef[R]: ...


class RemoteDecorator(Protocol):
    """`remote(option=…)`, waiting for its function or class."""

    @overload
    def __call__(self, function: type[C]) -> ActorClass[C]: ...

    @overload
    def __call__(self, function: Callable[..., Iterator[Any] | AsyncIterator[Any]]) -> RemoteGenerator: ...

    @overload
    def __call__(
        self,
        function: Callable[[T1, T2, T3, T4, T5, T6, T7, T8, T9, T10], R],
    ) -> RemoteFunction10[R, T1, T2, T3, T4, T5, T6, T7, T8, T9, T10]: ...

    @overload
    def __call__(
        self,
        function: Callable[[T1, T2, T3, T4, T5, T6, T7, T8, T9], R],
    ) -> RemoteFunction9[R, T1, T2, T3, T4, T5, T6, T7, T8, T9]: ...

    @overload
    def __call__(
        self,
        function: Callable[[T1, T2, T3, T4, T5, T6, T7, T8], R],
    ) -> RemoteFunction8[R, T1, T2, T3, T4, T5, T6, T7, T8]: ...

    @overload
    def __call__(
        self,
        function: Callable[[T1, T2, T3, T4, T5, T6, T7], R],
    ) -> RemoteFunction7[R, T1, T2, T3, T4, T5, T6, T7]: ...

    @overload
    def __call__(
        self,
        function: Callable[[T1, T2, T3, T4, T5, T6], R],
    ) -> RemoteFunction6[R, T1, T2, T3, T4, T5, T6]: ...

    @overload
    def __call__(
        self,
        function: Callable[[T1, T2, T3, T4, T5], R],
    ) -> RemoteFunction5[R, T1, T2, T3, T4, T5]: ...

    @overload
    def __call__(self, function: Callable[[T1, T2, T3, T4], R]) -> RemoteFunction4[R, T1, T2, T3, T4]: ...

    @overload
    def __call__(self, function: Callable[[T1, T2, T3], R]) -> RemoteFunction3[R, T1, T2, T3]: ...

    @overload
    def __call__(self, function: Callable[[T1, T2], R]) -> RemoteFunction2[R, T1, T2]: ...

    @overload
    def __call__(self, function: Callable[[T1], R]) -> RemoteFunction1[R, T1]: ...

    @overload
    def __call__(self, function: Callable[[], R]) -> RemoteFunction0[R]: ...

    @overload
    def __call__(self, function: Callable[..., Any]) -> AnyRemoteFunction: ...


@overload
def remote(function: type[C]) -> ActorClass[C]: ...


@overload
def remote(function: Callable[..., Iterator[Any] | AsyncIterator[Any]]) -> RemoteGenerator: ...


@overload
def remote(
    function: Callable[[T1, T2, T3, T4, T5, T6, T7, T8, T9, T10], R],
) -> RemoteFunction10[R, T1, T2, T3, T4, T5, T6, T7, T8, T9, T10]: ...


@overload
def remote(
    function: Callable[[T1, T2, T3, T4, T5, T6, T7, T8, T9], R],
) -> RemoteFunction9[R, T1, T2, T3, T4, T5, T6, T7, T8, T9]: ...


@overload
def remote(
    function: Callable[[T1, T2, T3, T4, T5, T6, T7, T8], R],
) -> RemoteFunction8[R, T1, T2, T3, T4, T5, T6, T7, T8]: ...


@overload
def remote(
    function: Callable[[T1, T2, T3, T4, T5, T6, T7], R],
) -> RemoteFunction7[R, T1, T2, T3, T4, T5, T6, T7]: ...


@overload
def remote(function: Callable[[T1, T2, T3, T4, T5, T6], R]) -> RemoteFunction6[R, T1, T2, T3, T4, T5, T6]: ...


@overload
def remote(function: Callable[[T1, T2, T3, T4, T5], R]) -> RemoteFunction5[R, T1, T2, T3, T4, T5]: ...


@overload
def remote(function: Callable[[T1, T2, T3, T4], R]) -> RemoteFunction4[R, T1, T2, T3, T4]: ...


@overload
def remote(function: Callable[[T1, T2, T3], R]) -> RemoteFunction3[R, T1, T2, T3]: ...


@overload
def remote(function: Callable[[T1, T2], R]) -> RemoteFunction2[R, T1, T2]: ...


@overload
def remote(function: Callable[[T1], R]) -> RemoteFunction1[R, T1]: ...


@overload
def remote(function: Callable[[], R]) -> RemoteFunction0[R]: ...


@overload
def remote(function: Callable[..., Any]) -> AnyRemoteFunction: ...


@overload
def remote(**options: Any) -> RemoteDecorator: ...


def remote(*args: Any, **kwargs: Any) -> Any:
    """See `miniray.decorator.remote`."""

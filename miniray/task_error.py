"""`RayError`, and the error of a task that raised: RayTaskError and the user's type in one.

`get` raises a type made for the cause's class: `RayTaskError(ValueError)` is a RayTaskError and a
ValueError, shows the remote traceback (user frames only) and lets the cause's attributes through.
Errors are rebuilt from their state, never by calling a constructor again, so every one survives
pickling. Users find these names in `miniray.exceptions`.
"""

from __future__ import annotations

import logging
import os
import types
from typing import Any

logger = logging.getLogger("miniray.exceptions")

_PUBLIC = "miniray.exceptions"


def _rebuild(cls: type[RayError], args: tuple[Any, ...], state: dict[str, Any]) -> RayError:
    """Make an error again from its state, without its constructor."""
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class RayError(Exception):
    """Base of every error that miniray itself raises."""

    __module__ = _PUBLIC

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), self.args, dict(self.__dict__))

    def to_bytes(self) -> bytes:
        """This error as bytes: its pickle, and its text in case the pickle cannot be read."""
        from miniray.runtime import errors

        return errors.pack_exception(self)

    @staticmethod
    def from_bytes(data: bytes) -> BaseException:
        """The error that `to_bytes` wrote; `UnserializableException` when it cannot be rebuilt."""
        from miniray.runtime import errors

        return errors.unpack_exception(data)


class RayTaskError(RayError):
    """A task raised. Raised by `get` as a type that is this one and the user's at once.

    `cause` is the user's exception, `traceback_str` the remote traceback (user frames only),
    `proctitle`, `pid` and `ip` say where it ran, `actor_repr` is set when it ran in an actor.
    """

    __module__ = _PUBLIC

    def __init__(
        self,
        function_name: str,
        traceback_str: str,
        cause: BaseException,
        proctitle: str | None = None,
        pid: int | None = None,
        ip: str | None = None,
        actor_repr: str | None = None,
        actor_id: str | None = None,
    ) -> None:
        self.function_name = function_name
        self.traceback_str = traceback_str
        self.cause = cause
        self.proctitle = proctitle or f"ray::{function_name}"
        self.pid = pid or os.getpid()
        self.ip = ip or "127.0.0.1"
        self.actor_repr = actor_repr
        self._actor_id = actor_id
        self.args = (function_name, traceback_str, cause, proctitle, pid, ip)

    def __reduce__(self) -> Any:
        state = dict(self.__dict__)
        return _rebuild, (RayTaskError, self.args, state)

    def as_instanceof_cause(self) -> RayTaskError:
        """This error as an instance of the cause's class too; itself where that is impossible."""
        if issubclass(RayTaskError, type(self.cause)):
            return self
        try:
            return self.make_dual_exception_instance()
        except TypeError as e:
            logger.warning(
                "User exception type %s in RayTaskError can't be subclassed! This exception is raised as "
                "RayTaskError only. You can use `ray_task_error.cause` to access the user exception. "
                "Failure in subclassing: %s",
                type(self.cause),
                e,
            )
        except Exception as e:
            logger.warning(
                "User exception type %s cannot be combined with RayTaskError, so only that is raised; "
                "`ray_task_error.cause` is the user exception. Failure in subclassing: %s",
                type(self.cause),
                e,
            )
        return self

    def make_dual_exception_instance(self) -> RayTaskError:
        """An error that is a RayTaskError and of the cause's class; TypeError if that is final."""
        dual = _dual_type(type(self.cause))
        error: RayTaskError = dual(self)
        return error

    def __str__(self) -> str:
        where = f"{self.proctitle}() (pid={self.pid}, ip={self.ip}"
        if self.actor_repr:
            where += f", actor_id={self._actor_id}, repr={self.actor_repr}"
        lines = [
            f"{where})" if line.startswith("Traceback ") else line
            for line in self.traceback_str.strip().split("\n")
        ]
        return "\n".join(lines)


class _DualMixin(RayTaskError):
    """What the type made for each class of causes adds: attributes of the cause shine through."""

    def __init__(self, error: RayTaskError) -> None:
        self.__dict__.update({k: v for k, v in error.__dict__.items() if k != "_dual_args"})
        self._dual_args = (error.cause,)
        self._copy_members()

    def _copy_members(self) -> None:
        """Take over fields that live in slots: `errno` of OSError, `code` of SystemExit, …"""
        for base in type(self.cause).__mro__:
            if base in (Exception, BaseException, object):
                continue
            for name, descriptor in vars(base).items():
                if name.startswith("__") or not isinstance(
                    descriptor, (types.MemberDescriptorType, types.GetSetDescriptorType)
                ):
                    continue
                try:
                    setattr(self, name, getattr(self.cause, name))
                except (AttributeError, TypeError):
                    continue  # unset or read-only in the cause too

    @property
    def args(self) -> tuple[Any, ...]:
        return self._dual_args

    @args.setter
    def args(self, value: tuple[Any, ...]) -> None:
        self._dual_args = value

    def __getattr__(self, name: str) -> Any:
        if name in ("cause", "_dual_args"):
            raise AttributeError(name)
        return getattr(self.cause, name)

    def __reduce__(self) -> Any:
        state = {k: v for k, v in self.__dict__.items() if k != "_dual_args"}
        args = (self.function_name, self.traceback_str, self.cause, self.proctitle, self.pid, self.ip)
        return _rebuild_dual, (_rebuild, (RayTaskError, args, state))


def _rebuild_dual(make: Any, arguments: tuple[Any, ...]) -> RayTaskError:
    error: RayTaskError = make(*arguments)
    return error.as_instanceof_cause()


def _dual_type(cause_class: type[BaseException]) -> type[Any]:
    """The class that is both `RayTaskError` and `cause_class`. Not cached: classes may be local."""

    def new(cls: type[Any], error: RayTaskError) -> Any:
        cause = error.cause
        args = cause.args
        if hasattr(cause, "exceptions"):  # a group: its constructor wants both
            args = (getattr(cause, "message", ""), cause.exceptions)
        try:
            return cause_class.__new__(cls, *args)
        except TypeError:
            return cause_class.__new__(cls)

    name = f"RayTaskError({cause_class.__name__})"
    namespace = {"__new__": new, "__module__": _PUBLIC, "__qualname__": name}
    return type(name, (_DualMixin, cause_class), namespace)

"""Graphs of calls that are described first and run later: ``f.bind(g.bind(InputNode()))``.

A node is a call whose arguments may be other nodes, also inside lists, tuples and dicts.
`execute(*inputs)` submits every node below it once; results travel as references, so a node
starts when the nodes it needs are done. Names follow `ray.dag`; compiled graphs are not offered.
"""

from __future__ import annotations

from typing import Any


class DAGNode:
    """One call of a graph."""

    def __init__(self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> None:
        self._bound_args = args
        self._bound_kwargs = kwargs or {}

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph up to this node: what its call returns (a reference, a handle, …)."""
        return self._run({}, args, kwargs)

    def _run(self, done: dict[DAGNode, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """This node's result; each node of one execution runs once."""
        if self not in done:
            done[self] = self._call(done, args, kwargs)
        return done[self]

    def _call(self, done: dict[DAGNode, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError

    def _arguments(
        self, done: dict[DAGNode, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """The bound arguments with nodes replaced by their results."""

        def resolve(value: Any) -> Any:
            if isinstance(value, DAGNode):
                return value._run(done, args, kwargs)
            if type(value) in (list, tuple):
                return type(value)(resolve(item) for item in value)
            if type(value) is dict:
                return {key: resolve(item) for key, item in value.items()}
            return value

        named = {key: resolve(value) for key, value in self._bound_kwargs.items()}
        return [resolve(value) for value in self._bound_args], named


class FunctionNode(DAGNode):
    """A call of a remote function."""

    def __init__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(args, kwargs)
        self._function = function

    def _call(self, done: dict[DAGNode, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        positional, named = self._arguments(done, args, kwargs)
        return self._function.remote(*positional, **named)


class ClassNode(FunctionNode):
    """The creation of an actor; its methods are attributes with a `bind` of their own.

    Each execution creates an actor. What is bound first is called first, also where no other node takes
    its result.
    """

    def __init__(self, actor_class: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(actor_class, args, kwargs)
        self._latest: ClassMethodNode | None = None

    def __getattr__(self, name: str) -> _Method:
        if name.startswith("_") or name == "bind":
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return _Method(self, name)


class _Method:
    def __init__(self, actor: Any, name: str, chosen: dict[str, Any] | None = None) -> None:
        self._actor = actor
        self._name = name
        self._options = chosen or {}

    def options(self, **chosen: Any) -> _Method:
        """This method with other options."""
        return _Method(self._actor, self._name, {**self._options, **chosen})

    def bind(self, *args: Any, **kwargs: Any) -> ClassMethodNode:
        """A call of this method."""
        return ClassMethodNode(self._actor, self._name, args, kwargs, self._options)


class ClassMethodNode(DAGNode):
    """A call of a method of an actor: a handle, or one that the graph creates."""

    def __init__(
        self,
        actor: Any,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        chosen: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(args, kwargs)
        self._actor = actor
        self._name = name
        self._options = chosen or {}
        self._before: ClassMethodNode | None = None
        if isinstance(actor, ClassNode):
            self._before, actor._latest = actor._latest, self

    def _call(self, done: dict[DAGNode, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        earlier, before = [], self._before
        while before is not None and before not in done:
            earlier.append(before)
            before = before._before
        for one in reversed(earlier):    # not by recursion: there may be thousands
            one._run(done, args, kwargs)
        actor = self._actor._run(done, args, kwargs) if isinstance(self._actor, DAGNode) else self._actor
        method = getattr(actor, self._name)
        positional, named = self._arguments(done, args, kwargs)
        return (method.options(**self._options) if self._options else method).remote(*positional, **named)


class InputNode(DAGNode):
    """What `execute` is called with; ``inputs[0]``, ``inputs["x"]`` and ``inputs.x`` are parts of it.

    Of one argument they are its items and attributes, of several the arguments themselves.
    """

    def __enter__(self) -> InputNode:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __getitem__(self, key: int | str) -> InputAttributeNode:
        return InputAttributeNode(key)

    def __getattr__(self, name: str) -> InputAttributeNode:
        if name.startswith("_"):
            raise AttributeError(name)
        return InputAttributeNode(name, is_attribute=True)

    def _call(self, done: dict[DAGNode, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) != 1 or kwargs:
            raise ValueError(
                f"the graph uses its input as a whole, so execute() takes one argument: got {len(args)} "
                f"and {sorted(kwargs)}"
            )
        return args[0]


class InputAttributeNode(DAGNode):
    """A part of what `execute` is called with, by position or name."""

    def __init__(self, key: int | str, is_attribute: bool = False) -> None:
        super().__init__()
        self._key = key
        self._is_attribute = is_attribute

    def _call(self, done: dict[DAGNode, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = self._key
        if len(args) == 1 and not kwargs:
            return getattr(args[0], str(key)) if self._is_attribute else args[0][key]
        try:
            return args[key] if isinstance(key, int) else kwargs[key]
        except LookupError:
            raise ValueError(
                f"the graph uses input {key!r}, and execute() got {len(args)} positional arguments "
                f"and {sorted(kwargs)}"
            ) from None


class MultiOutputNode(DAGNode):
    """Several nodes as the end of a graph: `execute` returns the list of their results."""

    def __init__(self, outputs: list[DAGNode]) -> None:
        super().__init__(tuple(outputs))

    def _call(self, done: dict[DAGNode, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._arguments(done, args, kwargs)[0]


__all__ = [
    "ClassMethodNode",
    "ClassNode",
    "DAGNode",
    "FunctionNode",
    "InputAttributeNode",
    "InputNode",
    "MultiOutputNode",
]

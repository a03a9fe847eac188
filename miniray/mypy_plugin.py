"""mypy's plugin for actors: exact types of handles, their methods and constructors.

Without it mypy sees handles as `ActorHandle[Counter]` whose methods are `Any`, and does not follow
``@remote`` on classes at all. In pyproject.toml::

    [tool.mypy]
    plugins = ["miniray.mypy_plugin"]

What it adds: ``Counter.remote(…)`` takes what ``Counter.__init__`` takes and gives an
``ActorHandle[Counter]``; ``handle.method.remote(…)`` takes what the method takes and gives an
``ObjectRef`` of what it returns; attributes that no method has are errors. Every argument may be an
ObjectRef to a value of its type. Overloaded and generic methods stay unchecked.
"""

from __future__ import annotations

from collections.abc import Callable

from mypy import errorcodes as codes
from mypy.nodes import ARG_STAR, ARG_STAR2, Argument, CallExpr, Decorator, FuncDef, SymbolNode, TypeInfo, Var
from mypy.plugin import AttributeContext, ClassDefContext, MethodSigContext, Plugin
from mypy.plugins.common import add_method_to_class
from mypy.typeops import bind_self
from mypy.types import (
    AnyType,
    CallableType,
    FunctionLike,
    Instance,
    Parameters,
    Type,
    TypeOfAny,
    UnionType,
    get_proper_type,
)

HANDLE = "miniray.actor.ActorHandle"
ACTOR_CLASS = "miniray.actor.ActorClass"
REFERENCE = "miniray.ids.ObjectRef"
GENERATOR = "miniray.generator.ObjectRefGenerator"
METHOD = "miniray.typed_methods.RemoteMethod"
DECORATORS = {"miniray.typed.remote", "miniray.decorator.remote", "miniray.remote"}
OF_EVERY_ACTOR = {"__ray_ready__", "__ray_call__", "__ray_terminate__"}
YIELDING = {"typing.Generator", "typing.Iterator", "typing.AsyncGenerator", "typing.AsyncIterator"}
MARK = "miniray"
"""In the metadata of a class that is decorated."""

Named = Callable[[str, list[Type]], Instance]


class ActorPlugin(Plugin):
    """The hooks; what they do stands below."""

    def get_class_decorator_hook_2(self, fullname: str) -> Callable[[ClassDefContext], bool] | None:
        """``@remote`` on a class."""
        return _decorated if fullname in DECORATORS else None

    def get_method_signature_hook(self, fullname: str) -> Callable[[MethodSigContext], FunctionLike] | None:
        """``Counter.remote``, of a decorated class and of an `ActorClass`."""
        owner, _, name = fullname.rpartition(".")
        if name != "remote":
            return None
        if owner == ACTOR_CLASS:
            return lambda context: _construct(context, self._named)
        found = self.lookup_fully_qualified(owner)
        if found is None or not isinstance(found.node, TypeInfo) or MARK not in found.node.metadata:
            return None
        actor = found.node
        return lambda context: _constructor(context, Instance(actor, []), self._named)

    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        """``handle.method``."""
        owner, _, name = fullname.rpartition(".")
        if owner != HANDLE or name.startswith("_ray_") or name in OF_EVERY_ACTOR:
            return None
        return lambda context: _method(context, name, self._named)

    def _named(self, fullname: str, arguments: list[Type]) -> Instance:
        symbol = self.lookup_fully_qualified(fullname)
        assert symbol is not None and isinstance(symbol.node, TypeInfo), fullname
        return Instance(symbol.node, arguments)


def _decorated(context: ClassDefContext) -> bool:
    """Gives the class `remote` and `options`: mypy does not let a decorator replace a class."""
    info, api = context.cls.info, context.api
    itself = Instance(info, [AnyType(TypeOfAny.from_omitted_generics)] * len(info.defn.type_vars))
    anything = AnyType(TypeOfAny.special_form)
    arguments = [
        Argument(Var("args", anything), anything, None, ARG_STAR),
        Argument(Var("kwargs", anything), anything, None, ARG_STAR2),
    ]
    for name, result in (("remote", HANDLE), ("options", ACTOR_CLASS)):
        returned = api.named_type_or_none(result, [itself])
        if returned is None:
            return False  # not read yet: once more
        if name not in info.names:
            add_method_to_class(
                api, context.cls, name, arguments if name == "remote" else arguments[1:], returned,
                is_staticmethod=True,
            )
    info.metadata[MARK] = {}
    return True


def _construct(context: MethodSigContext, named: Named) -> FunctionLike:
    actor = get_proper_type(context.type)
    made = get_proper_type(actor.args[0]) if isinstance(actor, Instance) and actor.args else None
    return _constructor(context, made, named) if isinstance(made, Instance) else context.default_signature


def _constructor(context: MethodSigContext, actor: Instance, named: Named) -> FunctionLike:
    """The parameters of `__init__`, each of which may be an ObjectRef."""
    signature = _signature(actor, "__init__")
    if signature is None:
        return context.default_signature
    given = _lifted(signature, named)
    return signature.copy_modified(
        arg_types=given.arg_types, ret_type=context.default_signature.ret_type, name="remote")


def _method(context: AttributeContext, name: str, named: Named) -> Type:
    """A `RemoteMethod` of the actor's method; what cannot be told stays as it was."""
    handle = get_proper_type(context.type)
    actor = get_proper_type(handle.args[0]) if isinstance(handle, Instance) and handle.args else None
    if not isinstance(actor, Instance):
        return context.default_attr_type
    if actor.type.get(name) is None and actor.type.get("__getattr__") is None:
        context.api.fail(
            f'"{actor.type.name}" has no method "{name}"', context.context, code=codes.ATTR_DEFINED)
        return context.default_attr_type
    signature = _signature(actor, name)
    if signature is None:
        return context.default_attr_type
    result = _result(signature, _several(actor.type, name), named)
    return named(METHOD, [_lifted(signature, named), result])


def _signature(actor: Instance, name: str) -> CallableType | None:
    """Of the bound method as it was written. None when it is generic, overloaded or unknown."""
    node = _node(actor.type, name)
    plain = not isinstance(node, Decorator) or all(_is_method_option(one) for one in node.original_decorators)
    function = node.func if isinstance(node, Decorator) and plain else node
    written = get_proper_type(function.type) if isinstance(function, FuncDef) else None
    if not isinstance(written, CallableType):
        return None
    bound = bind_self(written, actor)
    return None if bound.variables else bound


def _node(info: TypeInfo, name: str) -> SymbolNode | None:
    symbol = info.get(name)
    return symbol.node if symbol is not None else None


def _is_method_option(decorator: object) -> bool:
    """`@method` and `@method(…)`, which leave the signature as it is."""
    called = decorator.callee if isinstance(decorator, CallExpr) else decorator
    return getattr(called, "name", "") == "method"


def _several(info: TypeInfo, name: str) -> bool:
    """True when `@method(num_returns=…)` decides what a call gives."""
    node = _node(info, name)
    decorators = node.original_decorators if isinstance(node, Decorator) else []
    return any("num_returns" in one.arg_names for one in decorators if isinstance(one, CallExpr))


def _result(signature: CallableType, several: bool, named: Named) -> Type:
    returned = get_proper_type(signature.ret_type)
    if several:
        return AnyType(TypeOfAny.special_form)
    if isinstance(returned, Instance):
        if returned.type.fullname in YIELDING:
            return named(GENERATOR, [])
        if returned.type.fullname == "typing.Coroutine":
            return named(REFERENCE, [returned.args[2]])
    return named(REFERENCE, [returned])


def _lifted(signature: CallableType, named: Named) -> Parameters:
    """Every argument as a value or an ObjectRef to one."""

    def lift(given: Type) -> Type:
        plain = get_proper_type(given)
        return given if isinstance(plain, AnyType) else UnionType([given, named(REFERENCE, [given])])

    return Parameters(
        [lift(one) for one in signature.arg_types], signature.arg_kinds, signature.arg_names)


def plugin(version: str) -> type[Plugin]:
    """What mypy calls."""
    return ActorPlugin

"""Remote functions and actor classes as objects, without a cluster."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys

import cloudpickle
import pytest

import miniray as ray
from miniray import signatures


@ray.remote
def documented(a, b=2, *, c=3):
    """What it does."""
    return a


@ray.remote
class Documented:
    """What it is."""

    CONSTANT = 5

    def __init__(self, x):
        self.x = x

    def method(self, a, b=1):
        return a

    @staticmethod
    def static(a):
        return a

    @classmethod
    def of(cls):
        return cls(1)


def test_docstring_and_signature_are_kept():
    assert documented.__doc__ == documented.remote.__doc__ == "What it does."
    assert documented.__name__ == "documented"
    assert str(inspect.signature(documented.remote)) == "(a, b=2, *, c=3)"
    assert Documented.__doc__ == "What it is."
    assert Documented.__name__ == "Documented"


def test_calling_directly_says_how_to():
    with pytest.raises(TypeError, match=r"Remote functions cannot be called directly.*documented\.remote"):
        documented(1)
    with pytest.raises(TypeError, match=r"Actors cannot be instantiated directly.*'Documented\.remote\(\)'"):
        Documented(1)


def test_attributes_of_the_class_shine_through():
    assert Documented.CONSTANT == 5
    assert Documented.static(3) == 3


def test_inheriting_from_an_actor_class_is_refused():
    with pytest.raises(ray.actor.ActorClassInheritanceException, match="not currently supported"):

        class Child(Documented):
            pass


def test_remote_functions_travel():
    again = pickle.loads(cloudpickle.dumps(documented.options(num_cpus=2)))
    assert again._default_options == {"num_cpus": 2}

    @ray.remote
    def recursive(n):
        return recursive

    assert "recursive" in repr(pickle.loads(cloudpickle.dumps(recursive)))


def test_actor_classes_travel():
    again = pickle.loads(cloudpickle.dumps(Documented.options(num_cpus=2)))
    assert again._default_options == {"num_cpus": 2}
    assert again.__ray_metadata__.class_name == "Documented"


def test_method_decorator_checks_its_options():
    with pytest.raises(AssertionError, match="Unexpected keyword argument"):
        ray.method(no_such=1)
    with pytest.raises(ValueError, match="can only be used with generator"):

        class Wrong:
            @ray.method(num_returns="streaming")
            def plain(self):
                return 1


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "fits"),
    [
        (lambda: 0, (), {}, True),
        (lambda: 0, (1,), {}, False),
        (lambda a: 0, (), {}, False),
        (lambda a: 0, (1,), {}, True),
        (lambda a: 0, (), {"a": 1}, True),
        (lambda a: 0, (1,), {"a": 1}, False),
        (lambda a, b=1: 0, (1,), {}, True),
        (lambda a, b=1: 0, (1, 2, 3), {}, False),
        (lambda *a: 0, (1, 2, 3), {}, True),
        (lambda *, k: 0, (), {}, False),
        (lambda *, k: 0, (), {"k": 1}, True),
        (lambda **k: 0, (), {"anything": 1}, True),
        (lambda a: 0, (1,), {"b": 1}, False),
    ],
)
def test_arguments_are_checked_as_python_does(function, args, kwargs, fits):
    signature = signatures.of_function(function)
    for one in (signature, pickle.loads(pickle.dumps(signature))):
        if fits:
            one.check(args, kwargs)
        else:
            with pytest.raises(TypeError):
                one.check(args, kwargs)


def test_missing_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = ray.no_such_name
    with pytest.raises(AttributeError):
        _ = ray.util.no_such_name


def test_all_public_names_exist():
    for name in ray.__all__:
        assert getattr(ray, name) is not None
    for name in ray.util.__all__:
        assert getattr(ray.util, name) is not None


def test_remote_and_placement_group_stay_functions_whatever_is_imported():
    import miniray.util.placement_group

    assert callable(ray.remote)
    assert callable(ray.util.placement_group)
    assert miniray.util.placement_group is ray.util.placement_group


def test_importing_loads_nothing_heavy():
    heavy = ["numpy", "google.protobuf", "grpc", "asyncio", "cloudpickle", "subprocess", "sqlite3"]
    code = f"import sys, miniray; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""Actor groups: one call goes to every actor."""

import warnings

import pytest

import miniray as ray
from miniray.util.actor_group import ActorGroup

pytestmark = pytest.mark.filterwarnings("ignore:ActorGroup")


class Greeter:
    def __init__(self, greeting="hello"):
        self.greeting = greeting

    def greet(self, name):
        return f"{self.greeting} {name}"

    def get_actor_metadata(self):
        return self.greeting


def test_a_call_goes_to_every_actor(ray_shared):
    group = ActorGroup(Greeter, num_actors=2, num_cpus_per_actor=0, init_args=("hi",))
    assert ray.get(group.greet.remote("you")) == ["hi you"] * 2
    assert group.actor_metadata == ["hi", "hi"]
    with pytest.raises(TypeError, match=r"greet\.remote\(\)"):
        group.greet("you")
    with pytest.raises(AttributeError):
        group.sing.remote()
    group.shutdown(0)


def test_a_group_that_was_shut_down_can_start_again(ray_shared):
    group = ActorGroup(Greeter, num_cpus_per_actor=0)
    with pytest.raises(RuntimeError, match="shutdown"):
        group.start()
    old = group[0].actor
    group.shutdown()
    assert len(group) == 0
    with pytest.raises(RuntimeError, match="start"):
        group.greet.remote("you")
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(old.greet.remote("you"), timeout=60)
    group.start()
    assert ray.get(group.greet.remote("you")) == ["hello you"]
    group.shutdown(0)


def test_actors_can_be_added_and_removed(ray_shared):
    group = ActorGroup(Greeter, num_cpus_per_actor=0)
    group.add_actors(2)
    assert len(group) == 3
    group.remove_actors([0, 2])
    assert ray.get(group.greet.remote("you")) == ["hello you"]
    group.shutdown(0)


@pytest.mark.parametrize("wrong", [{"num_actors": 0}, {"num_cpus_per_actor": -1}, {"num_gpus_per_actor": -1}])
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ActorGroup(Greeter, **wrong)


def test_the_group_says_that_it_is_deprecated():
    with warnings.catch_warnings(record=True) as seen, pytest.raises(ValueError, match="num_actors"):
        warnings.simplefilter("always")
        ActorGroup(Greeter, num_actors=0)
    assert any("ray.util.multiprocessing" in str(one.message) for one in seen)

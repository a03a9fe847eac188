"""Graphs that are bound first and executed later."""

from __future__ import annotations

import pytest

import miniray as ray
from miniray.dag import InputNode, MultiOutputNode

pytestmark = pytest.mark.usefixtures("ray_shared")


@ray.remote
def add(x, y):
    return x + y


@ray.remote
def total(numbers):
    return sum(ray.get(numbers))


@ray.remote(num_cpus=0)
class Counter:
    def __init__(self, start):
        self.value = start

    def add(self, amount):
        self.value += amount
        return self.value


def test_functions():
    with InputNode() as x:
        graph = add.bind(add.bind(x, 1), y=10)
    assert ray.get(graph.execute(5)) == 16
    assert ray.get(graph.execute(0)) == 11


def test_shared_node_runs_once():
    counter = Counter.remote(0)
    step = counter.add.bind(1)
    assert ray.get(add.bind(step, step).execute()) == 2


def test_nodes_inside_containers():
    assert ray.get(total.bind([add.bind(1, 2), add.bind(3, 4)]).execute()) == 10


def test_actors():
    with InputNode() as inputs:
        actor = Counter.bind(inputs[0])
        graph = MultiOutputNode([actor.add.bind(inputs.amount), actor.add.bind(1)])
    assert ray.get(graph.execute(100, amount=5)) == [105, 106]


def test_whole_input_takes_one_argument():
    with pytest.raises(ValueError, match="one argument"):
        add.bind(InputNode(), 1).execute(1, 2)

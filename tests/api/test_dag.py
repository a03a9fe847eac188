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


def test_what_is_bound_to_an_actor_is_called_in_that_order():
    first, second = Counter.bind(10), Counter.bind(10)
    first.add.bind(2)
    first.add.options(name="again").bind(4)
    second.add.bind(6)
    graph = add.bind(first.add.bind(0), second.add.bind(0))
    assert ray.get(graph.execute()) == 32
    assert ray.get(graph.execute()) == 32    # other actors


def test_a_long_chain_of_calls():
    actor = Counter.bind(0)
    for _ in range(2000):
        latest = actor.add.bind(1)
    assert ray.get(latest.execute()) == 2000


def test_parts_of_one_argument():
    with InputNode() as inputs:
        graph = MultiOutputNode([add.bind(inputs["x"], 1), add.bind(inputs["y"], 1)])
        sized = add.bind(inputs.real, inputs.imag)
    assert ray.get(graph.execute({"x": 1, "y": 2})) == [2, 3]
    assert ray.get(sized.execute(2 + 3j)) == 5


def test_a_part_that_is_not_given_is_named():
    with pytest.raises(ValueError, match=r"uses input 'b', .* got 1 positional arguments and \['a'\]"):
        add.bind(InputNode().b, 1).execute(1, a=2)


def test_whole_input_takes_one_argument():
    with pytest.raises(ValueError, match="one argument"):
        add.bind(InputNode(), 1).execute(1, 2)


def test_names_are_where_programs_look_for_them():
    from miniray import _raylet, dag, generator
    from miniray.dag import dag_node, input_node, output_node

    assert input_node.InputNode is dag.InputNode and output_node.MultiOutputNode is dag.MultiOutputNode
    assert dag_node.DAGNode is dag.DAGNode
    assert _raylet.ObjectRefGenerator is generator.ObjectRefGenerator

"""Options: what is refused, and what accepted ones mean."""

from __future__ import annotations

import json

import pytest

import miniray as ray
from miniray import labels, options
from miniray.ids import PlacementGroupID
from miniray.util.placement_group import PlacementGroup, validate_placement_group
from miniray.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
    PlacementGroupSchedulingStrategy,
)

NODE = "ab" * 28
GROUP = PlacementGroup(PlacementGroupID.from_random(), [{"CPU": 2.0}, {"GPU": 1.0}])


def f():
    return 1


def generator():
    yield 1


class A:
    pass


@pytest.mark.parametrize(
    ("chosen", "error", "text"),
    [
        ({"no_such": 1}, ValueError, "Invalid option keyword no_such for remote functions"),
        ({"num_cpus": -1}, ValueError, "cannot be negative"),
        ({"num_gpus": 0.00000001}, ValueError, "cannot go beyond 0.0001"),
        ({"resources": {"CPU": 1}}, ValueError, "Use the 'num_cpus' and 'num_gpus' keyword"),
        ({"resources": [1]}, TypeError, "The type of keyword 'resources'"),
        (
            {"num_returns": -1},
            ValueError,
            "The keyword 'num_returns' only accepts None, a non-negative integer",
        ),
        ({"num_returns": "many"}, ValueError, "num_returns"),
        ({"num_returns": "streaming"}, ValueError, "can only be used with generator functions"),
        ({"max_retries": -2}, ValueError, "only accepts None, 0, -1 or a positive integer"),
        ({"max_calls": -1}, ValueError, "only accepts None, 0 or a positive integer"),
        ({"max_retries": 0.5}, TypeError, "The type of keyword 'max_retries' must be"),
        ({"retry_exceptions": [1]}, ValueError, "retry_exceptions must be"),
        ({"label_selector": {"-x": "a"}}, ValueError, "Invalid label key name"),
        ({"label_selector": {"a": "in()"}}, ValueError, "Invalid label selector value"),
        ({"fallback_strategy": [{"num_cpus": 1}]}, ValueError, "Unsupported option found"),
        ({"_generator_backpressure_num_objects": 0}, ValueError, "backpressure_num_objects=0 is not allowed"),
        ({"scheduling_strategy": 5}, TypeError, "scheduling_strategy"),
        ({"max_restarts": 1}, ValueError, "Invalid option keyword max_restarts"),
    ],
)
def test_wrong_task_options(chosen, error, text):
    with pytest.raises(error, match=text):
        ray.remote(**chosen)(f)
    with pytest.raises(error, match=text):
        ray.remote(f).options(**chosen)


@pytest.mark.parametrize(
    ("chosen", "error", "text"),
    [
        ({"no_such": 1}, ValueError, "Invalid option keyword no_such for actors"),
        ({"max_restarts": -2}, ValueError, "max_restarts"),
        ({"lifetime": "long"}, ValueError, "actor `lifetime` argument must be one of"),
        ({"get_if_exists": True}, ValueError, "actor name must be specified"),
        ({"max_concurrency": -1}, ValueError, "max_concurrency"),
        ({"num_returns": 2}, ValueError, "Invalid option keyword num_returns"),
    ],
)
def test_wrong_actor_options(chosen, error, text):
    with pytest.raises(error, match=text):
        ray.remote(**chosen)(A)
    with pytest.raises(error, match=text):
        ray.remote(A).options(**chosen)


def test_what_options_may_not_change():
    with pytest.raises(ValueError, match="Setting 'max_calls' is not supported"):
        ray.remote(f).options(max_calls=1)
    with pytest.raises(ValueError, match="Setting 'concurrency_groups' is not supported"):
        ray.remote(A).options(concurrency_groups={})


def test_decorator_wants_a_function_or_class():
    with pytest.raises(TypeError, match="must be applied to either a function or a class"):
        ray.remote(num_cpus=1)(5)
    with pytest.raises((TypeError, AssertionError), match=r"@ray\.remote decorator must be applied"):
        ray.remote(5)
    with pytest.raises(ValueError, match="'async def' should not be used"):

        @ray.remote
        async def g():
            pass


def test_gpu_tasks_do_not_share_their_process():
    assert ray.remote(num_gpus=1)(f)._default_options["max_calls"] == 1
    assert "max_calls" not in ray.remote(f)._default_options


def test_variants_are_kept():
    remote = ray.remote(f)
    assert remote.options(num_cpus=2) is remote.options(num_cpus=2)
    assert remote.options(num_cpus=2) is not remote.options(num_cpus=3)


def test_defaults_of_every_option_pass_their_own_check():
    for table in (options.task_options, options.actor_options):
        for name, option in table.items():
            option.validate(name, option.default_value)
            with pytest.raises(TypeError):
                option.validate(name, object())


def test_resources():
    chosen = {
        "num_cpus": 0.5,
        "num_gpus": 1,
        "memory": 100,
        "accelerator_type": "A100",
        "resources": {"x": 2, "y": 0},
    }
    assert options.resources_of(chosen) == {
        "CPU": 5000,
        "GPU": 10_000,
        "memory": 1_000_000,
        "x": 20_000,
        "accelerator_type:A100": 10,
    }


@pytest.mark.parametrize("chosen", [{"num_gpus": 1.5}, {"resources": {"TPU": 2.5}}])
def test_devices_are_shared_or_taken_whole(chosen):
    options.validate_task(chosen, in_options=False)    # it is the call that asks for them
    with pytest.raises(ValueError, match="an integer or a fraction below 1"):
        options.resources_of(chosen)


def test_default_strategy_is_none():
    assert options.strategy_of({}) is None
    assert options.strategy_of({"scheduling_strategy": "DEFAULT"}) is None


def test_spread():
    assert options.strategy_of({"scheduling_strategy": "SPREAD"}).spread


def test_affinity():
    found = options.strategy_of(
        {"scheduling_strategy": NodeAffinitySchedulingStrategy(NODE, soft=True)}
    ).affinity
    assert found.node_id.hex() == NODE
    assert found.soft


def test_labels():
    strategy = NodeLabelSchedulingStrategy(
        {"a": In("x", "y"), "b": NotIn("z"), "c": Exists()}, soft={"d": DoesNotExist()}
    )
    found = options.strategy_of({"scheduling_strategy": strategy})
    kinds = [(match.key, match.Operator.Name(match.operator), list(match.values)) for match in found.labels]
    assert kinds == [("a", "IN", ["x", "y"]), ("b", "NOT_IN", ["z"]), ("c", "EXISTS", [])]
    assert found.soft_labels[0].key == "d"


def test_label_selectors():
    found = options.strategy_of(
        {
            "label_selector": {"a": "in(x, y)", "b": "!z"},
            "fallback_strategy": [{"label_selector": {"c": "w"}}],
        }
    )
    assert [(m.key, m.operator, list(m.values)) for m in found.labels] == [
        ("a", m_in := found.labels[0].IN, ["x", "y"]),
        ("b", found.labels[0].NOT_IN, ["z"]),
    ]
    assert m_in == 0
    assert found.fallbacks[0].matches[0].key == "c"


def test_bundle():
    strategy = PlacementGroupSchedulingStrategy(GROUP, 1, placement_group_capture_child_tasks=True)
    found = options.strategy_of({"scheduling_strategy": strategy}).bundle
    assert (found.placement_group_id, found.bundle_index, found.capture_child_tasks) == (
        GROUP.id.binary(),
        1,
        True,
    )


def test_captured_group_is_used_unless_a_strategy_is_given():
    assert options.strategy_of({}, GROUP).bundle.placement_group_id == GROUP.id.binary()
    assert options.strategy_of({"scheduling_strategy": "DEFAULT"}, GROUP) is None
    assert options.strategy_of({"scheduling_strategy": "SPREAD"}, GROUP).spread
    assert options.strategy_of({"placement_group": None}, GROUP) is None


@pytest.mark.parametrize("index", [2, -2])
def test_bundle_index_must_exist(index):
    with pytest.raises(ValueError, match=f"bundle index {index} is invalid"):
        options.strategy_of({"scheduling_strategy": PlacementGroupSchedulingStrategy(GROUP, index)})


def test_request_must_fit_a_bundle():
    chosen = {"scheduling_strategy": PlacementGroupSchedulingStrategy(GROUP)}
    options.check_fits(chosen, None, {"CPU": 20_000}, {}, "f")
    with pytest.raises(ValueError, match="cannot fit into any bundles"):
        options.check_fits(chosen, None, {"CPU": 30_000}, {}, "f")
    with pytest.raises(ValueError, match="its creation"):
        options.check_fits(chosen, None, {"GPU": 10_000}, {"CPU": 10_000}, "A")


@pytest.mark.parametrize(
    "make",
    [
        lambda: In(),
        lambda: In(1),
        lambda: NodeLabelSchedulingStrategy({}),
        lambda: NodeLabelSchedulingStrategy({1: In("a")}),
        lambda: NodeLabelSchedulingStrategy({"a": "b"}),
        lambda: NodeAffinitySchedulingStrategy("xyz", soft=False),
        lambda: NodeAffinitySchedulingStrategy(NODE, soft=False, _spill_on_unavailable=True),
        lambda: NodeAffinitySchedulingStrategy(NODE, soft=True, _fail_on_unavailable=True),
    ],
)
def test_wrong_strategies(make):
    with pytest.raises(ValueError):
        make()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (({"CPU": 1},), "must be a list"),
        (([],), "must be a non-empty list"),
        (([1],), "resource dictionaries"),
        (([{"CPU": "1"}],), "resource dictionaries"),
        (([{"CPU": 0}],), "only 0 values"),
        (([{}],), "only 0 values"),
        (([{"CPU": 1}], "SOMEWHERE"), "Invalid placement group strategy"),
        (([{"CPU": 1}], "PACK", "long"), "lifetime"),
    ],
)
def test_wrong_placement_groups(arguments, text):
    with pytest.raises(ValueError, match=text):
        validate_placement_group(*arguments)


@pytest.mark.parametrize(
    ("key", "good"),
    [("a", True), ("ray.io/a-b", True), ("a b", False), ("-a", False), ("x" * 64, False), ("_/a", False)],
)
def test_label_keys(key, good):
    assert (labels.key_error(key) is None) == good


def test_runtime_env_is_inherited_and_env_vars_merge():
    inherited = '{"env_vars":{"A":"1","B":"2"},"working_dir":"w"}'
    merged = json.loads(options.runtime_env_of({"env_vars": {"B": "3"}}, inherited))
    assert merged == {"env_vars": {"A": "1", "B": "3"}, "working_dir": "w"}
    assert options.runtime_env_of(None, inherited) == inherited
    assert options.runtime_env_of(None, "") == ""


@pytest.mark.parametrize(
    ("env", "error"),
    [
        ({"env_vars": {"A": 1}}, TypeError),
        ({"env_vars": [1]}, TypeError),
        ({"working_dir": 5}, TypeError),
        ({"py_modules": "x"}, TypeError),
        ({"pip": ["a"], "uv": ["b"]}, ValueError),
        ({"config": {"setup_timeout_seconds": 0}}, ValueError),
        ({"config": {"setup_timeout_seconds": "10"}}, TypeError),
        ({"config": 5}, TypeError),
        ({"worker_process_setup_hook": 5}, TypeError),
    ],
)
def test_wrong_runtime_envs(env, error):
    from miniray.runtime_env import RuntimeEnv

    with pytest.raises(error):
        RuntimeEnv(**env)
    with pytest.raises(error):
        ray.remote(f).options(runtime_env=env)
    with pytest.raises(error):
        ray.remote(runtime_env=env)(A)


def test_runtime_env_forms():
    from miniray.runtime_env import RuntimeEnv, RuntimeEnvConfig

    env = RuntimeEnv(env_vars={"B": "2", "A": "1"}, config=RuntimeEnvConfig(setup_timeout_seconds=-1))
    assert RuntimeEnv.deserialize(env.serialize()) == env
    assert env["env_vars"] == {"A": "1", "B": "2"}

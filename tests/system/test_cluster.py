"""Three nodes as real daemons: work is spread, objects and calls cross, a node's death is a normal case."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from miniray import exceptions
from tests.system.support import Effects, alive, eventually, kill

MB = 1 << 20


class Three:
    """A cluster of three nodes: the head's (resource "home"), "a" and "b". The test is its driver."""

    def __init__(self, ray: Any) -> None:
        from miniray.cluster_utils import Cluster

        self.ray = ray
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 2, "resources": {"home": 10}, "object_store_memory": 400 * MB},
        )
        self.nodes = {"home": self.cluster.head_node, "a": self.add("a"), "b": self.add("b")}
        ray.init(self.cluster.address, configure_logging=False)
        ray_nodes = eventually(lambda: self.living() == 3 and ray.nodes())
        assert {node["NodeID"] for node in ray_nodes} == {node.node_id for node in self.nodes.values()}

    def add(self, name: str, **options: Any) -> Any:
        """One more node with a resource of its name."""
        return self.cluster.add_node(
            num_cpus=2, resources={name: 10}, object_store_memory=400 * MB, **options)

    def living(self) -> int:
        return sum(node["Alive"] for node in self.ray.nodes())

    def has(self, node_id: str) -> bool:
        return any(node["Alive"] and node["NodeID"] == node_id for node in self.ray.nodes())

    def on(self, name: str, **options: Any) -> dict[str, Any]:
        """Options that place something on a node."""
        return {"resources": {name: 0.1}, **options}

    def store_used(self, name: str) -> int:
        """Bytes that the store of a node holds."""

        def look() -> int:
            from miniray import api

            return int(api.connected_worker().store.stats()["used"])

        return int(self.ray.get(self.ray.remote(look).options(**self.on(name, num_cpus=0)).remote()))

    def close(self) -> None:
        self.ray.shutdown()
        self.cluster.shutdown()


@pytest.fixture(scope="module")
def three() -> Iterator[Three]:
    import miniray

    made = Three(miniray)
    yield made
    made.close()


@pytest.fixture
def ray(three: Three) -> Any:
    return three.ray


def where() -> str:
    import miniray

    return str(miniray.get_runtime_context().get_node_id())


# ---- placement


def test_resources_decide_where_tasks_and_actors_run(three: Three, ray: Any) -> None:
    @ray.remote
    class Actor:
        def where(self) -> str:
            return where()

    task = ray.remote(where)
    for name, node in three.nodes.items():
        assert ray.get(task.options(**three.on(name)).remote()) == node.node_id
        assert ray.get(Actor.options(**three.on(name)).remote().where.remote()) == node.node_id


def test_more_work_than_one_node_can_do_runs_on_all(three: Three, ray: Any) -> None:
    def busy() -> str:
        time.sleep(0.2)
        return where()

    places = ray.get([ray.remote(busy).remote() for _ in range(12)])
    assert set(places) == {node.node_id for node in three.nodes.values()}
    spread = ray.get([ray.remote(busy).options(scheduling_strategy="SPREAD").remote() for _ in range(6)])
    assert len(set(spread)) == 3


def test_actors_spread_by_what_they_need(three: Three, ray: Any) -> None:
    @ray.remote(num_cpus=1)
    class Actor:
        def where(self) -> str:
            return where()

    actors = [Actor.remote() for _ in range(6)]     # six CPUs, two a node
    places = ray.get([actor.where.remote() for actor in actors])
    assert sorted(places.count(node.node_id) for node in three.nodes.values()) == [2, 2, 2]
    late = Actor.remote().where.remote()
    assert ray.wait([late], timeout=0.3) == ([], [late]), "the cluster is full"
    del actors
    assert ray.get(late, timeout=20)


def test_what_no_node_can_run_is_said_at_once(three: Three, ray: Any) -> None:
    with pytest.raises(exceptions.GetTimeoutError, match="c"):
        ray.get(ray.remote(where).options(resources={"nowhere": 1}).remote(), timeout=0.5)


# ---- objects


@pytest.mark.slow
def test_a_256_mb_array_made_on_one_node_is_read_on_another(three: Three, ray: Any) -> None:
    @ray.remote
    def make() -> Any:
        return np.arange(32 * MB)       # 256 MiB

    @ray.remote
    def look(array: Any) -> tuple[str, int, int, bool]:
        return where(), int(array[0] + array[-1]), int(array.sum()), array.flags.owndata

    made = make.options(**three.on("a")).remote()
    expected = (32 * MB - 1, (32 * MB - 1) * (32 * MB) // 2, False)
    for name in ("b", "a", "home"):
        assert ray.get(look.options(**three.on(name)).remote(made)) == (three.nodes[name].node_id, *expected)
    here = ray.get(made)
    assert here[-1] == 32 * MB - 1 and not here.flags.owndata
    del made, here
    for name in three.nodes:
        eventually(lambda: three.store_used(name) < MB, f"no copy is left on {name}")


def test_references_made_on_one_node_are_used_on_another(three: Three, ray: Any) -> None:
    @ray.remote
    def make(n: int) -> Any:
        return [ray.put(np.full(MB, n, np.uint8)), ray.put({"small": n})]

    @ray.remote
    def take(pair: list[Any]) -> int:
        large, small = ray.get(pair)
        return int(large.sum() // MB) + small["small"]

    pairs = [make.options(**three.on(name)).remote(n) for n, name in enumerate(("home", "a", "b"), 1)]
    for name in three.nodes:
        results = [take.options(**three.on(name)).remote(pair) for pair in pairs]
        assert ray.get(results) == [2, 4, 6]
    inner = ray.get(ray.get(pairs[1])[0])
    assert inner[0] == 2 and where() == three.nodes["home"].node_id
    del pairs, inner
    for name in three.nodes:
        eventually(lambda: three.store_used(name) < MB // 2, f"nothing is left on {name}")


def test_tasks_go_where_their_large_arguments_are(three: Three, ray: Any) -> None:
    make = ray.remote(lambda: np.zeros(20 * MB, np.uint8)).options(**three.on("b", num_cpus=0))
    made = make.remote()
    ray.wait([made], fetch_local=False)       # a copy here would be as near as the one there
    # Nothing is leased for such tasks yet, and no idle lease of others is in their way.
    place = ray.remote(num_cpus=0, memory=MB)(lambda array: where())
    assert ray.get(place.remote(made)) == three.nodes["b"].node_id


# ---- calls


def test_channels_to_here_and_to_elsewhere_are_opened_in_one_breath(three: Three, ray: Any) -> None:
    """A ring's descriptor is read along with requests for connections that have none."""

    @ray.remote
    class Actor:
        def where(self) -> str:
            return where()

    for _ in range(3):
        names = list(three.nodes) * 6
        actors = [Actor.options(**three.on(name, num_cpus=0)).remote() for name in names]
        answers = ray.get([actor.where.remote() for actor in actors], timeout=60)
        assert answers == [three.nodes[name].node_id for name in names]


def test_actor_calls_cross_nodes_in_order(three: Three, ray: Any) -> None:
    @ray.remote
    class Log:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def note(self, n: int, *_: Any) -> int:
            self.seen.append(n)
            return n

        def all(self) -> list[int]:
            return self.seen

    log = Log.options(**three.on("a")).remote()
    sizes = [0, 10, 100_000, 60_000]
    refs = [log.note.remote(n, bytes(sizes[n % 4])) for n in range(1000)]
    assert ray.get(refs) == list(range(1000)) and ray.get(log.all.remote()) == list(range(1000))


def test_actors_on_different_nodes_talk_to_one_another(three: Three, ray: Any) -> None:
    @ray.remote(num_cpus=0)
    class Relay:
        def __init__(self, following: Any = None) -> None:
            self.following = following

        def around(self, value: Any, hops: int) -> Any:
            if not hops or self.following is None:
                return [where(), value]
            return [where(), *ray.get(self.following.around.remote(value, hops - 1))]

    b = Relay.options(**three.on("b")).remote()
    a = Relay.options(**three.on("a")).remote(b)
    home = Relay.options(**three.on("home")).remote(a)
    array = np.arange(MB)
    *places, back = ray.get(home.around.remote(array, 5))
    assert places == [three.nodes[name].node_id for name in ("home", "a", "b")]
    assert (back == array).all()


def test_nested_tasks_spill_over_to_other_nodes(three: Three, ray: Any) -> None:
    @ray.remote
    def leaf(n: int) -> str:
        time.sleep(0.05)
        return where()

    @ray.remote
    def branch() -> list[str]:
        return list(ray.get([leaf.remote(n) for n in range(8)]))

    places = [place for result in ray.get([branch.remote() for _ in range(4)]) for place in result]
    assert len(places) == 32 and len(set(places)) == 3


def test_cancel_kill_and_errors_cross_nodes(three: Three, ray: Any, effects: Effects) -> None:
    @ray.remote
    def sleeper() -> None:
        effects.happened("started")
        time.sleep(1000)

    @ray.remote
    class Victim:
        def pid(self) -> int:
            return os.getpid()

        def fail(self) -> None:
            raise KeyError("far away")

    ref = sleeper.options(**three.on("b")).remote()
    eventually(lambda: effects.count("started"))
    ray.cancel(ref)
    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(ref, timeout=10)
    victim = Victim.options(**three.on("b")).remote()
    with pytest.raises(KeyError, match="far away"):
        ray.get(victim.fail.remote())
    pid = ray.get(victim.pid.remote())
    ray.kill(victim)
    eventually(lambda: not alive(pid), "it is dead")
    with pytest.raises(exceptions.ActorDiedError):
        ray.get(victim.pid.remote(), timeout=10)


def test_what_is_printed_on_another_node_appears_here(
    three: Three, ray: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    ray.get(ray.remote(lambda: print("greetings from a")).options(**three.on("a"), name="greet").remote())
    seen = ""

    def look() -> bool:
        nonlocal seen
        seen += capfd.readouterr().out
        return "greetings from a" in seen

    eventually(look, "the line arrives")
    assert "(greet pid=" in seen


# ---- death


class Mortal:
    """A node that the test adds and kills."""

    def __init__(self, three: Three, name: str) -> None:
        from miniray.runtime import agent

        self.name = name
        self.node = three.add(name)
        self.three = three
        eventually(lambda: name in three.ray.cluster_resources(), "the driver knows it")
        self.processes = lambda: [self.node.pid, *agent.descendants_of(self.node.pid)]

    def kill(self) -> None:
        """kill -9 of its raylet, then wait until the cluster knows."""
        members = self.processes()
        kill(self.node.pid)
        eventually(lambda: not any(alive(pid) for pid in members), "its processes end")
        eventually(lambda: not Path(self.node.session_dir).exists(), "its directory goes")
        eventually(self.reported_dead, "the cluster knows", 20)

    def reported_dead(self) -> bool:
        row = next(node for node in self.three.ray.nodes() if node["NodeID"] == self.node.node_id)
        return not row["Alive"]


@pytest.mark.slow
def test_a_killed_node_is_noticed_and_its_actors_die_with_the_cause(three: Three, ray: Any) -> None:
    @ray.remote
    class Actor:
        def ping(self) -> int:
            return os.getpid()

        def sleep(self) -> None:
            time.sleep(1000)

    mortal = Mortal(three, "m1")
    actor = Actor.options(**three.on("m1"), name="doomed").remote()
    restarts = Actor.options(resources={"m1": 0.1}, max_restarts=1, max_task_retries=-1, num_cpus=0).remote()
    ray.get([actor.ping.remote(), restarts.ping.remote()])
    in_flight = actor.sleep.remote()
    mortal.kill()
    for ref in (in_flight, actor.ping.remote()):
        with pytest.raises(exceptions.ActorDiedError) as caught:
            ray.get(ref, timeout=10)
        assert mortal.node.node_id[:8] in str(caught.value) and "died" in str(caught.value)
    with pytest.raises(ValueError):
        ray.get_actor("doomed")
    assert "m1" not in ray.cluster_resources() and three.living() == 3
    again = Mortal(three, "m1")     # a node that has what the restarting actor needs
    assert ray.get(restarts.ping.remote(), timeout=20)
    again.kill()


def test_tasks_of_a_killed_node_run_again_elsewhere(three: Three, ray: Any, effects: Effects) -> None:
    mortal = Mortal(three, "m2")

    @ray.remote(max_retries=1)
    def work(path: str) -> str:
        effects.happened("started")
        while effects.count("started") < 2:
            time.sleep(0.01)
        return where()

    from miniray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(mortal.node.node_id, soft=True)
    ref = work.options(scheduling_strategy=strategy).remote("")
    never = work.options(scheduling_strategy=strategy, max_retries=0).remote("")
    eventually(lambda: effects.count("started") >= 1)
    if effects.count("started") >= 2:
        effects.happened("both")
    mortal.kill()
    places = {node.node_id for node in three.nodes.values()} | {mortal.node.node_id}
    assert ray.get(ref, timeout=20) in places
    try:
        assert ray.get(never, timeout=20) in places
    except (exceptions.NodeDiedError, exceptions.WorkerCrashedError) as error:
        assert mortal.node.node_id[:8] in str(error) or "node" in str(error)


def test_objects_of_a_killed_node_are_rebuilt_or_lost_by_name(
    three: Three, ray: Any, effects: Effects
) -> None:
    mortal = Mortal(three, "m3")

    @ray.remote(max_retries=2)
    def base() -> Any:
        effects.happened("base")
        return np.full(MB, 7, np.uint8)

    @ray.remote(max_retries=2)
    def twice(array: Any) -> Any:
        effects.happened("twice")
        return array * 2

    @ray.remote(max_retries=0)
    def once() -> Any:
        return np.zeros(MB, np.uint8)

    there = three.on("m3", num_cpus=0)
    soft = {"num_cpus": 0, "resources": {"m3": 0.1}}
    first = base.options(**soft).remote()
    second = twice.options(**soft).remote(first)
    lost = once.options(**there).remote()
    ray.wait([second, lost], num_returns=2, fetch_local=False)
    del first
    mortal.kill()
    with pytest.raises(exceptions.ObjectLostError) as caught:
        ray.get(lost, timeout=20)
    assert lost.hex() in str(caught.value)
    again = Mortal(three, "m3")
    assert ray.get(second, timeout=20)[0] == 14
    assert effects.count("base") == effects.count("twice") == 2, "the argument was freed, so it is made again"
    again.kill()


def test_a_node_that_is_told_to_end_finishes_its_work_first(three: Three, ray: Any, effects: Effects) -> None:
    mortal = Mortal(three, "m4")

    @ray.remote
    def slow() -> str:
        effects.happened("started")
        time.sleep(0.7)
        return where()

    ref = slow.options(**three.on("m4")).remote()
    eventually(lambda: effects.count("started"))
    os.kill(mortal.node.pid, 15)
    assert ray.get(ref, timeout=20) == mortal.node.node_id
    eventually(lambda: not alive(mortal.node.pid), "it has left")
    eventually(mortal.reported_dead, "the cluster knows")


def test_a_stopped_head_takes_everything_along_and_leaves_nothing() -> None:
    """A cluster of its own: kill -9 of all its daemons at once, from the head down."""
    from miniray.cluster_utils import Cluster
    from miniray.runtime import agent

    cluster = Cluster(initialize_head=True)
    cluster.add_node(num_cpus=1)
    nodes = cluster.list_all_nodes()
    pids = [cluster._head_pid, *(node.pid for node in nodes)]
    members = [pid for daemon in pids for pid in (daemon, *agent.descendants_of(daemon))]
    directories = [Path(node.session_dir) for node in nodes]
    for pid in pids:
        kill(pid)
    eventually(lambda: not any(alive(pid) for pid in members), "all processes end")
    eventually(lambda: not any(path.exists() for path in directories), "all directories go")
    cluster.shutdown()


def test_the_death_of_a_borrower_that_its_owner_never_spoke_to_frees_the_object(three: Three) -> None:
    ray = three.ray

    @ray.remote(num_cpus=0)
    class Keeper:
        def keep(self, box: list[Any]) -> None:
            self.box = box

        def show(self) -> list[Any]:
            return self.box

        def forget(self) -> None:
            del self.box

    @ray.remote(num_cpus=0)
    class Borrower:
        def borrow(self, keeper: Any) -> int:
            self.box = ray.get(keeper.show.remote())
            return os.getpid()

    @ray.remote(num_cpus=0)
    class Between:
        def make(self, keeper: Any) -> int:
            """All calls to the borrower come from here: the driver, who owns the object, makes none."""
            self.borrower = Borrower.options(**three_on_b).remote()
            return int(ray.get(self.borrower.borrow.remote(keeper)))

    three_on_b = three.on("b")
    reference = ray.put(np.zeros(8 * MB, np.uint8))
    keeper, between = Keeper.options(**three.on("a")).remote(), Between.options(**three.on("a")).remote()
    ray.get(keeper.keep.remote([reference]))
    borrower = ray.get(between.make.remote(keeper), timeout=60)
    ray.get(keeper.forget.remote())
    del reference
    assert three.store_used("home") >= 8 * MB, "the borrower holds it"
    kill(borrower)
    eventually(lambda: three.store_used("home") < 8 * MB, "its owner strikes the dead borrower out")


def far_channels() -> list[Any]:
    """The driver's channels to workers of other nodes."""
    from miniray import api
    from miniray.runtime.transport import CircuitChannel

    peers = list(api.connected_worker().peers._peers.values())
    return [peer.channel for peer in peers if isinstance(peer.channel, CircuitChannel)]


def test_calls_survive_the_connection_that_carries_them(three: Three) -> None:
    ray = three.ray

    @ray.remote(num_cpus=0)
    class Log:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def note(self, number: int, load: bytes) -> int:
            self.seen.append(number)
            return number

        def all(self) -> list[int]:
            return self.seen

    actor = Log.options(**three.on("b")).remote()
    ray.get(actor.all.remote(), timeout=60)
    eventually(lambda: any(channel.is_connected for channel in far_channels()), "a connection of the two")
    refs = []
    for number in range(3000):
        refs.append(actor.note.remote(number, bytes(2000)))
        if number % 500 == 250:
            for channel in far_channels():
                if channel.connection is not None:
                    channel.connection.close()      # as a broken wire does
    assert ray.get(refs, timeout=60) == list(range(3000))
    assert ray.get(actor.all.remote(), timeout=60) == list(range(3000)), "each once, in order"


def test_an_actor_that_was_taken_for_dead_by_mistake_is_reached_again(
    three: Three, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A raylet may say that a process is gone when only the way to it was lost."""
    from miniray import api
    from miniray._proto import common_pb2, worker_pb2
    from miniray.core import calls

    ray = three.ray
    monkeypatch.setattr(calls, "DOUBT_S", 0.5)

    @ray.remote(num_cpus=0)
    class Lasting:
        def stay(self, seconds: float) -> int:
            time.sleep(seconds)
            return os.getpid()

    actor = Lasting.options(**three.on("b")).remote()
    pid = ray.get(actor.stay.remote(0), timeout=60)
    once, again = actor.stay.remote(2), actor.stay.options(max_task_retries=5).remote(0)
    worker = api.connected_worker()
    with worker.lock:
        client = worker.owner.calls.clients[actor._actor_id.binary()]
        failure = common_pb2.Failure(kind=common_pb2.WORKER_DIED, message="so it is said")
        gone = worker_pb2.WorkerGone(failure=failure)
        gone.address.node_id, gone.address.worker_id = client.remote.address
        worker.departures.announced(gone)
    with pytest.raises(exceptions.ActorUnavailableError, match="not known whether this call ran"):
        ray.get(once, timeout=60)
    assert ray.get(again, timeout=60) == pid
    assert ray.get(actor.stay.remote(0), timeout=60) == pid


def test_a_worker_that_does_not_read_holds_up_neither_others_nor_the_raylets(three: Three) -> None:
    ray = three.ray

    @ray.remote(num_cpus=0)
    class Sink:
        def pid(self) -> int:
            return os.getpid()

        def take(self, load: bytes) -> int:
            return len(load)

    stuck, other = (Sink.options(**three.on("b")).remote() for _ in range(2))
    pid = ray.get(stuck.pid.remote(), timeout=60)
    ray.get(other.pid.remote(), timeout=60)
    raylets = [node.pid for node in three.nodes.values()]
    before = {raylet: psutil.Process(raylet).memory_info().rss for raylet in raylets}
    os.kill(pid, signal.SIGSTOP)
    try:
        waiting = [stuck.take.remote(bytes(90_000)) for _ in range(600)]    # 54 MB
        assert ray.get([other.take.remote(b"x") for _ in range(100)], timeout=60) == [1] * 100
        for raylet in raylets:
            grown = psutil.Process(raylet).memory_info().rss - before[raylet]
            assert grown < 20 * MB, f"a raylet keeps {grown >> 20} MB for a worker that does not read"
    finally:
        os.kill(pid, signal.SIGCONT)
    assert ray.get(waiting, timeout=60) == [90_000] * 600


def test_an_actor_of_a_node_that_has_just_joined_can_be_called_at_once(three: Three) -> None:
    """Its address may be known before any view has named its node: unknown is not dead."""
    ray = three.ray

    @ray.remote(num_cpus=0)
    class Echo:
        def say(self, value: int) -> int:
            return value

    for number in range(3):
        name = f"late{number}"
        three.add(name)
        actor = Echo.options(**three.on(name)).remote()
        assert ray.get(actor.say.remote(number), timeout=60) == number


def test_what_only_a_drained_node_has_goes_to_another_before_it_leaves(three: Three, ray: Any) -> None:
    from miniray import api
    from miniray._proto import gcs_pb2

    def make(seed: int) -> Any:
        return np.random.default_rng(seed).integers(0, 255, 8 * MB, np.uint8)

    node = three.add("leaver")
    eventually(lambda: three.has(node.node_id))
    made = ray.remote(make).options(max_retries=0, **three.on("leaver"))  # so it cannot be made anew
    refs = [made.remote(seed) for seed in range(3)]
    assert len(ray.wait(refs, num_returns=3, timeout=60, fetch_local=False)[0]) == 3
    api.connected_worker().request("drain", gcs_pb2.DrainRequest(
        node_id=bytes.fromhex(node.node_id), deadline_s=120.0, reason="new disks"))
    eventually(lambda: not three.has(node.node_id))
    for seed, ref in enumerate(refs):
        assert np.array_equal(ray.get(ref, timeout=60), make(seed))

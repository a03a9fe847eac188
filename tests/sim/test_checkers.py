"""The checkers see what they are there for: each is shown one broken promise."""

from __future__ import annotations

import re

import pytest

from miniray.core import ids
from miniray.core.actor_registry import ActorRecord
from miniray.core.actors import Actors
from miniray.core.link import Deliver
from miniray.core.owner import Owner
from miniray.core.submission import Submission

from . import checkers, services
from .faults import Faults, Plan
from .network import LinkEnd
from .registers import Registers
from .run import Failure, Scenario, Simulation, figures_of, scenario_of
from .shrink import kind_of, shrink
from .values import Failed, Loaded, UserError, Value
from .world import Violation

SMALL = Scenario(nodes=3, cpus=2, drivers=2, seconds=5.0, plan=Plan(5.0, {"worker_crash": 4}))


def fails(seed: int = 1, scenario: Scenario = SMALL) -> str:
    """The story of the first seed, from this one on, that fails; one of six must."""
    for number in range(seed, seed + 6):
        try:
            Simulation(number, scenario).run()
        except Failure as failure:
            return str(failure)
    pytest.fail(f"seeds {seed} to {seed + 5} have seen nothing")


def test_a_task_run_once_too_often_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def always(self: Owner, now: float, record: object, raised: bool = False) -> bool:
        record.remote = None  # type: ignore[attr-defined]
        self.submission.ready(now, record)  # type: ignore[arg-type]
        return True

    monkeypatch.setattr(Owner, "retry", always)
    assert "times, runs on" in fails()


def test_an_actor_that_starts_again_too_often_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Actors._lost

    def for_ever(self: Actors, now: float, record: ActorRecord, cause: object, **options: bool) -> None:
        lost(self, now, record, cause, **{**options, "charged": False})  # type: ignore[arg-type]

    monkeypatch.setattr(Actors, "_lost", for_ever)
    assert "it may start again" in fails(scenario=services.scenario_of(4, {"worker_crash": 12}))


def test_a_service_that_ends_with_its_driver_is_seen() -> None:
    simulation = Simulation(1, SMALL)
    simulation.world.run(lambda: False, 1.0)
    actor = bytes(16)
    simulation.cluster.oracle.detached[actor] = False
    assert checkers.detached_live(simulation.cluster) == [], "nobody has promised it"
    simulation.cluster.oracle.detached[actor] = True
    assert "restarts for ever, and is unknown" in checkers.detached_live(simulation.cluster)[0]


def test_an_object_freed_too_early_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from miniray.core.ownership import Ownership

    monkeypatch.setattr(Ownership, "retained", lambda self, restored, caller: [])
    story = fails(4)
    assert "holds a reference" in story or "was freed" in story


def test_leases_that_are_never_given_back_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Submission, "tick", lambda self, now: None)
    monkeypatch.setattr(Submission, "next_deadline", lambda self: None)
    story = fails()
    assert "there is left" in story or "after the last fault" in story


def test_a_lost_reply_is_seen_as_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Owner, "remote_gone", lambda self, *args, **kwargs: None)
    found = fails(seed=3)  # somebody waits for ever, or at least is never told to let go
    assert "after the last fault" in found or "there is left" in found


def test_resources_that_do_not_add_up_are_seen() -> None:
    simulation = Simulation(1, SMALL)
    simulation.world.run(lambda: False, 1.0)
    node = simulation.cluster.living[0]
    node.node.resources.available["CPU"] -= 1
    with pytest.raises(Violation, match="CPU total"):
        checkers.resources_add_up(node)


def test_a_value_of_another_object_is_seen() -> None:
    simulation = Simulation(1, SMALL)
    wrong = Loaded(Value(bytes(ids.OBJECT_ID_SIZE)), [])
    with pytest.raises(Violation, match="its value is that of"):
        simulation.cluster.oracle.value_read(simulation.cluster.drivers[0], b"x" * ids.OBJECT_ID_SIZE, wrong)


def test_a_value_after_an_error_and_a_value_without_a_run_are_seen() -> None:
    simulation = Simulation(1, SMALL)
    simulation.world.run(lambda: False, 2.0)
    oracle, driver = simulation.cluster.oracle, simulation.cluster.drivers[0]
    ran = next(oid for oid in oracle.outcomes if oracle.task_of(oid) is not None)
    value = Loaded(Value(ran, note=oracle.outcomes[ran][0]), [])
    with pytest.raises(Violation, match="now it has raised"):
        oracle.value_read(driver, ran, Failed(UserError(ran, "late")))
    with pytest.raises(Violation, match="now it has a value"):
        oracle.value_read(driver, ran, value)
    oracle.raised.clear()
    task = oracle.task_of(ran)
    assert task is not None
    task.starts.clear()
    with pytest.raises(Violation, match="never ran"):
        oracle.value_read(driver, ran, value)


def test_a_message_that_comes_twice_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    carry_out = LinkEnd._carry_out

    def twice(self: LinkEnd) -> None:
        self.link.out += [effect for effect in self.link.out if type(effect) is Deliver]
        carry_out(self)

    monkeypatch.setattr(LinkEnd, "_carry_out", twice)
    assert "of a link is not what was sent" in fails()


def test_copies_that_differ_are_seen() -> None:
    simulation = Simulation(1, SMALL)
    node = simulation.cluster.living[0]
    oid = b"o" * ids.OBJECT_ID_SIZE
    node.put(oid, Value(b"p" * ids.OBJECT_ID_SIZE), 100, b"")
    with pytest.raises(Violation, match="on n1 is"):
        checkers.copies_are_equal(simulation.cluster)


def test_a_head_that_forgets_a_saved_row_is_seen() -> None:
    simulation = Simulation(1, SMALL)
    head, wanted = simulation.cluster.head, {"actor", "job", "node", "kv"}
    assert simulation.world.run(lambda: wanted <= {table for table, _ in head.rows}, 30.0)
    assert head.head is not None
    checkers.rows_are_known(head.head, head.rows)
    for table, key in list(head.rows):
        if table in ("actor", "job", "node", "kv", "group"):
            rows = {(table, key[:-1] + b"?"): head.rows[table, key]}
            with pytest.raises(Violation, match=f"row {table} .* is unknown after the restart"):
                checkers.rows_are_known(head.head, rows)


def test_stale_and_invented_values_of_keys_are_seen() -> None:
    registers = Registers()
    assert registers.read(b"k", None, 0.0, 0.1) == ""
    first = registers.writing(1.0, b"k", b"1")
    assert registers.read(b"k", None, 1.1, 1.2) == "" == registers.read(b"k", b"1", 1.1, 1.2)
    first.end = 2.0
    registers.writing(3.0, b"k", b"2")
    assert registers.read(b"k", b"1", 3.1, 3.2) == "" == registers.read(b"k", b"2", 3.1, 3.2)
    registers.of(b"k")[-1].end = 4.0
    assert "had been overwritten" in registers.read(b"k", b"1", 5.0, 5.1)
    assert "had been overwritten" in registers.read(b"k", None, 5.0, 5.1)
    assert "nobody had written" in registers.read(b"k", b"3", 5.0, 5.1)


def test_a_story_names_the_seed_the_faults_and_how_to_see_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Owner, "remote_gone", lambda self, *args, **kwargs: None)
    story = fails(seed=3)
    found = re.search(r"seed (\d+):", story)
    assert found and "kill -9" in story and f"python -m tests.sim --seed {found[1]}" in story


def test_a_failing_seed_shrinks_to_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(self: Faults) -> None:
        if any(worker.alive for worker in self.cluster.workers):
            raise Violation("one kill is enough for this")

    monkeypatch.setattr(Faults, "_worker_crash", kill)
    told: list[str] = []
    start = {"nodes": 5.0, "until": 4.0, "seconds": 4.0, "worker_crash": 5.0, "storm": 1.0}
    with pytest.raises(Failure) as caught:
        Simulation(3, scenario_of(3, start)).run()
    changes, failure = shrink(3, start, caught.value, told.append)
    small = figures_of(scenario_of(3, changes))
    assert told and small["worker_crash"] == 1 and small["storm"] == 0 and small["nodes"] == 2
    assert kind_of(failure) == kind_of(caught.value) == "one kill is enough for this"
    with pytest.raises(Failure, match="one kill"):
        Simulation(3, scenario_of(3, changes)).run()

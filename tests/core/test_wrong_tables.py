"""A head whose tables are not those that its nodes know ends before it ends anything of theirs."""

from __future__ import annotations

from random import Random
from typing import Any

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core.contract import Persist
from miniray.core.head import Head, HeadOptions, WrongTables
from tests.core.head_world import node_id
from tests.core.rig import HEAD, Rig

ROW = ("kv", b"\0k", b"v")


def started(*rows: tuple[str, bytes, bytes], kept: bool = True) -> Head:
    """A head on these rows."""
    head = Head(Random(0), HeadOptions(epoch=2, tables_are_kept=kept))
    head.restore(0.0, rows)
    return head


def registers(head: Head, node: int, cluster: bytes) -> list[Any]:
    """The effects of a node's registration."""
    head.out = []
    info = pb.NodeInfo(node_id=node_id(node), hostname=f"host{node}")
    register = gcs.NodeRegister(info=info, cluster_id=cluster, actors=[gcs.LiveActor(actor_id=b"a" * 16)])
    head.node_message(0.0, node_id(node), gcs.NodeMessage(register=register))
    return head.out


def test_a_head_with_empty_tables_ends_when_a_node_knows_others() -> None:
    head = started()
    assert registers(head, 1, b"another cluster") == [WrongTables(node_id(1), "host1")]
    request = gcs.ControlRequest(request_id=1, kv_get=gcs.KvGet(key=b"k"))
    head.node_message(0.0, node_id(1), gcs.NodeMessage(request=request))
    assert registers(head, 2, b"") == [], "nobody is answered by a head that has given up"


def test_so_does_one_with_the_tables_of_another_cluster_and_not_one_that_keeps_none() -> None:
    assert type(registers(started(("meta", b"cluster_id", b"this")), 1, b"another")[0]) is WrongTables
    effects = registers(started(kept=False), 1, b"another")
    assert any(effect.message.registered.accepted for effect in effects if type(effect) is not Persist)


def test_a_stranger_among_the_nodes_of_a_cluster_is_refused_by_name() -> None:
    head = started(("meta", b"cluster_id", b"this"))
    registers(head, 1, b"this")
    (answer,) = registers(head, 2, b"another")
    assert not answer.message.registered.accepted and "another cluster" in answer.message.registered.refusal
    assert list(head.members.living) == [node_id(1)]


def test_salvaged_tables_that_have_lost_their_cluster_belong_to_that_of_their_first_node() -> None:
    head = started(ROW)
    effects = registers(head, 1, b"the one of before")
    assert Persist("meta", b"cluster_id", b"the one of before") in effects
    answers = [effect.message for effect in effects if type(effect) is not Persist]
    assert answers[0].registered.accepted and answers[0].registered.cluster_id == b"the one of before"


def test_a_node_remembers_its_cluster() -> None:
    rig = Rig()
    (first,) = rig.to(HEAD, "register")
    rig.head(registered=gcs.NodeRegistered(accepted=True, epoch=1, cluster_id=b"this"))
    rig.node.head_restarted(rig.now)
    rig.settle()
    (again,) = rig.to(HEAD, "register")
    assert (first.cluster_id, again.cluster_id) == (b"", b"this")

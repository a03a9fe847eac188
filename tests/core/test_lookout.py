"""Pulls that do not get on hear of further copies from the object's owner, and go on from those at once."""

from __future__ import annotations

from miniray._proto import common_pb2 as common
from miniray._proto import worker_pb2
from miniray.core.lookout import LOOK_EVERY_S, STALLED_S, STRANDED_S, WATCH_AFTER_S
from miniray.core.memory import NOBODY
from miniray.core.node_effects import StartFetch, StopFetch
from miniray.core.pulls import BACKING_OFF, FETCHING, QUEUED
from miniray.core.transfer import ACTIVE_PULLS, SILENT_RETRY_S
from tests.core.rig import NODE, PEER, Rig

OID = b"o" * 28
A, B = b"a" * 28, b"b" * 28
OWNER = common.Address(node_id=PEER, worker_id=b"w" * 28)
SIZE = 1 << 24


class Puller(Rig):
    """A node whose driver wants an object of a worker on PEER; A has a copy, and B lives."""

    def __init__(self, owner: common.Address = OWNER) -> None:
        super().__init__()
        for node_id in (PEER, A, B):
            self.peer(node_id)
        self.come = 0
        self.answer_of: common.Failure | None = None
        self.node.transfer.arrived = lambda object_id: self.come
        self.client = self.driver()
        if not owner.worker_id:
            owner = common.Address(node_id=NODE, worker_id=self.client)
        self.want(owner)
        assert self.fetches() == [(A, False)]

    def want(self, owner: common.Address = OWNER) -> None:
        self.say(self.client, pull=worker_pb2.PullRequest(
            request_id=1, object_id=OID, owner=owner, locations=[A], size=SIZE))

    def fetches(self) -> list[tuple[bytes, bool]]:
        return [(effect.node_id, effect.fresh) for effect in self.take(StartFetch)]

    def ends(self, kind: common.ErrorKind.ValueType | None = None, elsewhere: tuple[bytes, ...] = ()) -> None:
        failure = None if kind is None else common.Failure(kind=kind, message="it failed")
        self.node.fetch_ended(self.now, OID, SIZE, (OWNER.node_id, OWNER.worker_id), failure, list(elsewhere))
        self.settle()

    def watches(self) -> list[bool]:
        """What was said to the owner since the last look; True: the pull is over."""
        return [watch.ends for watch in self.to(PEER, "watch_copies")]

    def told(self, *added: bytes, node_id: bytes = PEER, **more: object) -> None:
        self.from_peer(node_id, copies_news=worker_pb2.CopiesNews(object_id=OID, added=added, **more))

    def answer(self) -> common.Failure | None:
        """Of the pull, if it has come."""
        replies = self.messages(self.client, "pull")
        return replies[0].failure if replies else None


def test_a_pull_that_ends_soon_costs_its_owner_one_message() -> None:
    rig = Puller()
    rig.advance(WATCH_AFTER_S / 2)
    rig.ends()
    assert rig.watches() == [] and len(rig.to(PEER, "location")) == 1


def test_a_silent_source_is_left_for_a_new_copy_the_moment_there_is_one() -> None:
    rig = Puller()
    rig.ends(common.NODE_DIED)
    assert rig.watches() == [False]
    rig.told(A)
    assert rig.fetches() == [], "A is what does not answer"
    rig.told(B)
    assert rig.fetches() == [(B, False)], "the same bytes: it goes on where A stopped"
    rig.ends()
    assert rig.watches() == [] and len(rig.to(PEER, "location")) == 1, "that ends the subscription, too"


def test_a_fetch_from_which_nothing_comes_goes_on_from_another_whole_copy() -> None:
    rig = Puller()
    rig.advance(WATCH_AFTER_S)
    assert rig.watches() == [False]
    rig.told(A)
    rig.come = 100
    rig.advance(LOOK_EVERY_S)
    rig.told(B)
    rig.advance(STALLED_S - LOOK_EVERY_S)
    assert rig.fetches() == [], "something came not long ago"
    rig.advance(LOOK_EVERY_S)
    assert rig.fetches() == [(B, False)] and [stop.keep for stop in rig.take(StopFetch)] == [True]


def test_who_passes_on_what_it_does_not_have_yet_is_waited_for() -> None:
    rig = Puller()
    rig.advance(WATCH_AFTER_S)
    rig.told(B)     # the owner does not know of A: it gets the object itself
    rig.advance(3 * STALLED_S)
    assert rig.fetches() == []


def test_an_object_that_is_nowhere_is_asked_for_again_and_the_bytes_of_the_new_one_begin_anew() -> None:
    rig = Puller()
    rig.advance(WATCH_AFTER_S)
    rig.told(A)
    rig.told(is_nowhere=True)
    assert rig.answer() is None, "perhaps the source has it all the same"
    rig.told(B)
    rig.ends(common.NODE_DIED)
    assert rig.fetches() == [(B, True)]
    rig.told(is_nowhere=True)
    rig.ends(common.NODE_DIED)
    rig.told(removed=[A, B])
    failure = rig.answer()
    assert failure is not None and failure.kind == common.OBJECT_LOST, "its owner has it made again"
    assert rig.watches() == [False, True]


def test_bytes_of_two_makings_are_told_apart_when_the_first_source_has_died() -> None:
    rig = Puller()
    rig.ends(common.NODE_DIED)
    rig.told(A)
    rig.told(B, removed=[A])
    assert rig.fetches() == [(B, True)]


def test_a_pull_in_the_queue_waits_when_news_takes_the_only_source_at_hand() -> None:
    rig = Puller()
    rig.ends(common.NODE_DIED)      # A is given time
    for number in range(ACTIVE_PULLS):
        rig.say(rig.client, pull=worker_pb2.PullRequest(
            request_id=10 + number, object_id=b"%028d" % number, owner=OWNER,
            locations=[(A, B)[number % 2]], size=SIZE))
    rig.take(StartFetch)
    rig.told(A, B)
    assert rig.node.transfer.pulls[OID].state == QUEUED and rig.fetches() == [], "others are before it"
    rig.told(removed=[B])
    assert rig.node.transfer.pulls[OID].state == BACKING_OFF
    rig.node.fetch_ended(rig.now, b"%028d" % 0, SIZE, NOBODY, None, [])
    rig.advance(SILENT_RETRY_S)
    assert rig.fetches() == [(A, False)]


def test_two_that_wait_for_one_anothers_rest_give_up_but_not_who_gets_more() -> None:
    rig = Puller()
    rig.ends(common.UNAVAILABLE, elsewhere=(B,))
    rig.node.peer_lost(rig.now, A, common.Failure())    # nobody has all of it any more
    began = rig.now
    while rig.answer_of is None:
        assert rig.now < began + 10 * STRANDED_S, "it waits for ever"
        for source, _ in rig.fetches():
            assert source == B
            if rig.now < began + STRANDED_S:
                rig.come += 1       # B is ahead of us still
            rig.ends(common.UNAVAILABLE)
        if rig.watches():
            rig.told()      # the owner knows of A alone
        rig.advance(0.1)
        rig.answer_of = rig.answer()
    assert rig.now > began + 2 * STRANDED_S - 1
    assert rig.answer_of.kind == common.OBJECT_LOST and "died" in rig.answer_of.message


def test_who_is_sent_away_by_a_whole_copy_again_and_again_waits() -> None:
    rig = Puller()
    while rig.now < 100 + 3 * STRANDED_S:
        if rig.fetches() or rig.node.transfer.pulls[OID].state == FETCHING:
            rig.ends(common.UNAVAILABLE)
        if rig.watches():
            rig.told(A)
        rig.advance(0.1)
    assert rig.answer() is None


def test_what_comes_in_is_not_given_up_for_the_owners_last_word() -> None:
    """The owner may have believed somebody who could not reach the source that we read from."""
    rig = Puller()
    rig.advance(WATCH_AFTER_S)
    assert rig.watches() == [False]
    rig.told(B)
    rig.told(over="its last copy is lost")
    assert rig.answer() is None and rig.take(StopFetch) == []
    rig.ends()
    failure = rig.answer()
    assert failure is not None and not failure.kind


def test_the_owners_last_word_ends_the_pull() -> None:
    rig = Puller()
    rig.ends(common.NODE_DIED)
    rig.told(over="its owner has freed it", node_id=B)
    assert rig.answer() is None, "B is not where its owner lives"
    rig.told(over="its owner has freed it")
    failure = rig.answer()
    assert failure is not None and failure.kind == common.OBJECT_LOST and "freed it" in failure.message
    assert rig.watches() == [False], "the owner knows"


def test_a_subscription_ends_with_the_client_and_is_made_again_when_the_owners_node_forgot_it() -> None:
    rig = Puller()
    rig.ends(common.NODE_DIED)
    rig.node.peer_restarted(rig.now, PEER)
    rig.settle()
    assert rig.watches() == [False, False]
    rig.exit(rig.client)
    assert rig.watches() == [True]


def test_an_owner_on_this_node_is_asked_without_a_detour() -> None:
    rig = Puller(owner=common.Address())
    rig.ends(common.NODE_DIED)
    (watch,) = rig.messages(rig.client, "watch_copies")
    rig.say(rig.client, copies_news=worker_pb2.CopiesNews(
        object_id=OID, subscribers=[watch.node_id, PEER], added=[A, B]))
    assert rig.fetches() == [(B, False)]
    assert [list(news.added) for news in rig.to(PEER, "copies_news")] == [[A, B]], "another pulls it, too"


def test_an_owner_hears_of_the_end_of_a_raylet_that_subscribed() -> None:
    rig = Rig()
    rig.peer()
    owner = rig.driver()
    watch = worker_pb2.WatchCopies(object_id=OID, owner=common.Address(node_id=NODE, worker_id=owner))
    rig.from_peer(watch_copies=watch)
    assert rig.messages(owner, "watch_copies")[0].node_id == PEER
    rig.node.peer_lost(rig.now, PEER, common.Failure())
    rig.settle()
    gone = rig.messages(owner, "worker_gone")
    assert [(one.address.node_id, one.address.worker_id) for one in gone] == [(PEER, b"")]


def test_a_raylet_that_subscribes_with_an_owner_that_has_ended_hears_so() -> None:
    rig = Rig()
    rig.peer()
    owner = common.Address(node_id=NODE, worker_id=b"x" * 28)
    rig.from_peer(watch_copies=worker_pb2.WatchCopies(object_id=OID, owner=owner))
    rig.from_peer(watch_copies=worker_pb2.WatchCopies(object_id=OID, owner=owner, ends=True))
    assert [news.over for news in rig.to(PEER, "copies_news")] == ["its owner has ended"]

"""When a zygote ends its workers because their raylet stands still."""

from __future__ import annotations

from miniray.runtime.fence import Fence


def watching() -> Fence:
    fence = Fence()
    fence.watch(0.0, 10.0)
    return fence


def test_a_local_session_has_none() -> None:
    fence = Fence()
    assert fence.pause_s is None
    assert not fence.looked(1.0, True) and not fence.looked(1000.0, True) and not fence.slept(1000.0)


def test_workers_end_before_the_heads_patience_is_over() -> None:
    fence = watching()
    assert fence.pause_s == 1.0
    ends = [second for second in range(1, 12) if fence.looked(float(second), is_still=second > 2)]
    assert ends[0] == 10, "eight seconds after the last look that saw it running"


def test_a_raylet_that_goes_on_in_time_keeps_its_workers() -> None:
    fence = watching()
    for second in range(1, 100):
        assert not fence.looked(float(second), is_still=second % 8 != 0)


def test_a_zygote_that_stood_still_itself_ends_them_when_it_goes_on() -> None:
    fence = watching()
    assert not fence.slept(2.0) and fence.slept(8.5)

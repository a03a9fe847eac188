"""Progress bars of workers, drawn by the driver."""

import io
import json

import pytest

import miniray as ray
from miniray.experimental import progress_bars, tqdm_ray


@pytest.fixture
def manager(monkeypatch):
    monkeypatch.setattr(tqdm_ray, "_manager", None)
    return tqdm_ray.instance()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def only_bar(manager):
    bars = [bar for group in manager.bar_groups.values() for bar in group.bars_by_uuid.values()]
    return bars[0].bar if len(bars) == 1 else None


def a_state(**changes):
    state = {"__magic_token__": tqdm_ray.MAGIC, "x": 3, "pos": 0, "desc": "", "total": 9}
    return json.dumps({**state, "unit": "it", "uuid": "a", "closed": False, **changes})


def test_the_bar_of_an_actor_reaches_the_driver(ray_start, manager, capsys, wait_until):
    @ray.remote
    class Counter:
        def __init__(self):
            self.bar = tqdm_ray.tqdm(desc="counting", total=100, flush_interval_s=0)
            self.bar.update(42)

        def say(self, text):
            print(text)

        def finish(self):
            self.bar.update(58)
            self.bar.close()

    counter = Counter.remote()
    wait_until(lambda: only_bar(manager) is not None)
    assert only_bar(manager).n == 42
    assert "counting" in only_bar(manager).desc
    hides = manager.num_hides
    ray.get(counter.say.remote("something else"))
    wait_until(lambda: manager.num_hides > hides and not manager.in_hidden_state)
    ray.get(counter.finish.remote())
    wait_until(lambda: only_bar(manager) is None)
    shown = capsys.readouterr()
    assert "100/100" in shown.err
    assert "something else" in shown.out
    assert tqdm_ray.MAGIC not in shown.out + shown.err


def test_bars_of_the_driver_count_items_and_flush_at_intervals(manager):
    assert sum(tqdm_ray.tqdm(range(100), flush_interval_s=3600)) == sum(range(100))
    assert only_bar(manager).n == 100
    manager.bar_groups.clear()
    bar = tqdm_ray.tqdm(total=10, flush_interval_s=3600)
    bar.update(1)
    bar.update(1)
    assert only_bar(manager).n == 1
    bar.close()
    assert only_bar(manager) is None
    with pytest.raises(ValueError, match="iterable"):
        list(bar)


def test_bars_make_room_for_other_output(manager, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    tqdm_ray.tqdm(desc="work", total=2, flush_interval_s=0).update(1)
    assert "1/2" in screen.getvalue()
    screen.truncate(0)
    manager.hide_bars()
    assert screen.getvalue().endswith(progress_bars.erased(1))
    manager.unhide_bars()
    assert "1/2" in screen.getvalue()


@pytest.mark.parametrize(
    "wrong",
    [{"x": "3"}, {"x": 1e300}, {"total": float("nan")}, {"desc": 7}, {"uuid": [1]}, {"__magic_token__": ""}],
)
def test_a_line_that_is_no_state_is_ordinary_output(wrong):
    assert tqdm_ray.state_in(a_state(), 5)["pid"] == 5
    assert tqdm_ray.state_in(a_state(**wrong), 5) is None
    assert tqdm_ray.state_in(f"hello {tqdm_ray.MAGIC}", 5) is None


def test_a_description_cannot_steer_the_terminal():
    bar = progress_bars.Bar()
    bar.desc, bar.total, bar.n = "a\x1b[2J\nb", 4, 1
    assert "\x1b" not in bar.line()
    assert "\n" not in bar.line()
    assert " 25%|" in bar.line()

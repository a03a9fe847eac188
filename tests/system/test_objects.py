"""Objects end to end: values and references through tasks, large ones, a full store, nothing kept."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from miniray import exceptions
from tests.small_disk import small_disk
from tests.system.support import Script, eventually, kill, run

MB = 1 << 20


def store(ray: Any) -> Any:
    """This node's store as the driver sees it."""
    from miniray import api

    return api.connected_worker().store


def used(ray: Any) -> int:
    return int(store(ray).stats()["used"])


@pytest.fixture
def nothing_kept(ray: Any) -> Any:
    """The store holds as much after the test as before."""
    before = eventually(lambda: used(ray) == 0 or used(ray)) and used(ray)
    yield
    eventually(lambda: used(ray) <= before, "the store is as empty as before")


VALUES: list[Any] = [
    None, 0, -(2**70), 1.5, "text", "ä€", b"bytes", True, (1, ("a", [2, {3: {4}}])), {"k": (1, None)},
    [float("inf")], frozenset({1}), range(5), slice(1, 2), complex(1, 2), Ellipsis, list(range(2000)),
    b"x" * 200_000, "x" * 200_000,
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_a_value_is_the_same_through_puts_and_calls(ray: Any, nothing_kept: Any, value: Any) -> None:
    @ray.remote
    def same(first: Any, second: Any = None) -> Any:
        return [first, second]

    assert ray.get(ray.put(value)) == value
    assert ray.get(same.remote(value, second=ray.put(value))) == [value, value]


@pytest.mark.parametrize("dtype", ["u1", "f4", "f8", "c16", "?", "M8[s]", "U5"])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 5), (200, 1000)])
def test_arrays_keep_type_shape_and_bytes(ray: Any, nothing_kept: Any, dtype: str, shape: Any) -> None:
    @ray.remote
    def turned(array: Any) -> Any:
        return array.T, array

    array = np.arange(int(np.prod(shape))).astype(dtype).reshape(shape)
    t, back = ray.get(turned.remote(array))
    assert back.dtype == array.dtype and back.shape == shape and (back == array).all()
    assert (t == array.T).all()
    del t, back


def test_arrays_are_views_on_the_store_and_read_only(ray: Any, nothing_kept: Any) -> None:
    ref = ray.put(np.ones(500_000))
    array, again = ray.get(ref), ray.get(ref)
    assert not array.flags.writeable and not array.flags.owndata
    assert array.__array_interface__["data"][0] == again.__array_interface__["data"][0]
    with pytest.raises(ValueError):
        array[0] = 2
    del ref
    assert array.sum() == 500_000, "the view keeps what the reference has let go"


def test_references_travel_inside_values_results_and_closures(ray: Any, nothing_kept: Any) -> None:
    inner = ray.put([3.0])     # what a closure refers to is kept to the end of the session, as in Ray

    @ray.remote
    def pack() -> Any:
        return {"from a closure": inner, "made here": [ray.put(np.full(200_000, 4.0))]}

    @ray.remote
    def unpack(packed: Any) -> float:
        return float(sum(ray.get(ref)[0] for ref in [packed["from a closure"], *packed["made here"]]))

    packed = pack.remote()
    assert ray.get(unpack.remote(packed)) == 7.0
    got = ray.get(packed)
    del packed
    assert ray.get(got["made here"][0])[0] == 4.0, "it outlives the object it came in, and its maker's task"
    assert got["from a closure"] == inner


class Carrier(Exception):
    """An error with a reference inside."""

    def __init__(self, ref: Any) -> None:
        super().__init__("look inside")
        self.ref = ref


def carried(ray: Any, ref: Any) -> Any:
    """The reference inside the error that a reference stands for."""
    try:
        ray.get(ref, timeout=60)
    except Carrier as error:
        assert isinstance(error, exceptions.RayTaskError)
        return error.cause.ref
    raise AssertionError("it did not raise")


def test_references_travel_inside_errors_and_are_let_go(ray: Any, nothing_kept: Any) -> None:
    @ray.remote(num_cpus=0.1)
    class Raiser:
        def fail(self) -> None:
            raise Carrier(ray.put(np.full(MB, 3.0)))

    @ray.remote(num_cpus=0.1)
    class Async:
        async def fail(self) -> None:
            raise Carrier(ray.put(np.full(MB, 4.0)))

    @ray.remote
    def fail(number: float, twice: Any = None) -> Any:
        raise Carrier(twice[0] if twice else ray.put(np.full(MB, number)))

    @ray.remote
    def items() -> Any:
        yield ray.put(np.full(MB, 5.0))
        raise Carrier(ray.put(np.full(MB, 6.0)))

    @ray.remote
    def behind(array: Any) -> Any:
        return array

    @ray.remote(max_retries=1, retry_exceptions=[Carrier])
    def again() -> Any:
        raise Carrier(ray.put(np.full(MB, 7.0)))

    @ray.remote
    def borrows(failed: list[Any]) -> float:
        return float(ray.get(carried(ray, failed[0]))[0])

    before = used(ray)
    raiser, asynchronous = Raiser.remote(), Async.remote()
    first = fail.remote(1.0)
    made = {1.0: [first, behind.remote(behind.remote(first))], 2.0: fail.options(num_returns=2).remote(2.0),
            3.0: [raiser.fail.remote()], 4.0: [asynchronous.fail.remote()], 6.0: list(items.remote())[1:],
            7.0: [again.remote()], 8.0: [fail.remote(0.0, [ray.put(np.full(MB, 8.0))])]}
    del first
    assert {float(ray.get(borrows.remote(refs[:1]))) for refs in made.values()} == set(made)
    inner = {number: carried(ray, refs[-1]) for number, refs in made.items()}
    assert {number: ray.get(ref)[-1] for number, ref in inner.items()} == {one: one for one in made}
    assert used(ray) - before >= len(made) * 8 * MB
    del inner
    assert ray.get(carried(ray, made[1.0][1]))[0] == 1.0, "the error keeps it"
    made[1.0] = made[1.0][1:]
    assert ray.get(carried(ray, made[1.0][0]))[0] == 1.0, "an error that is made of another as well"
    made.clear()
    eventually(lambda: used(ray) <= before + MB, "all of it is freed")
    ray.get([raiser.__ray_ready__.remote(), asynchronous.__ray_ready__.remote()])


def test_a_reference_to_a_reference_is_followed_step_by_step(ray: Any, nothing_kept: Any) -> None:
    @ray.remote
    def level(n: int, below: Any = None) -> Any:
        return [ray.put(n), below]

    top = None
    for n in range(10):
        top = [level.remote(n, top)]
    seen = []
    while top is not None:
        number, top = ray.get(top[0])
        seen.append(ray.get(number))
    assert seen == list(range(9, -1, -1))


def test_many_references_in_one_value(ray: Any, nothing_kept: Any) -> None:
    """More than fits into sixteen bits, both ways."""

    @ray.remote
    def count(refs: list[Any]) -> Any:
        return len(refs), ray.get(refs[-1]), refs[:70_000]

    refs = [ray.put(n) for n in range(70_000)]
    number, last, back = ray.get(count.remote(refs))
    assert (number, last, len(back)) == (70_000, 69_999, 70_000)
    assert back == refs


def test_a_task_with_many_returns(ray: Any, nothing_kept: Any) -> None:
    @ray.remote(num_returns=3000)
    def spread() -> Any:
        return range(3000)

    assert ray.get(spread.remote()) == list(range(3000))


def test_large_values_are_stored_once_and_freed_at_once(ray: Any, nothing_kept: Any) -> None:
    before = used(ray)
    array = np.random.default_rng(0).integers(0, 255, 40 * MB, dtype=np.uint8)
    ref = ray.put(array)
    assert 40 * MB <= used(ray) - before <= 41 * MB
    total = ray.remote(lambda a: (int(a.sum()), a.flags.owndata))
    assert ray.get([total.remote(ref) for _ in range(4)]) == [(int(array.sum()), False)] * 4
    assert used(ray) - before <= 41 * MB, "no copy was made"
    del ref
    eventually(lambda: used(ray) - before < MB, "it is freed")


def test_arguments_and_results_that_are_freed_leave_nothing(ray: Any, nothing_kept: Any) -> None:
    @ray.remote
    def make(n: int) -> Any:
        return np.zeros(MB, np.uint8) + n

    @ray.remote
    def add(a: Any, b: Any) -> Any:
        return a + b

    before = used(ray)
    for _ in range(5):
        refs = [make.remote(n) for n in range(8)]
        while len(refs) > 1:
            refs = [add.remote(*pair) for pair in zip(refs[::2], refs[1::2])]
        assert ray.get(refs[0])[0] == 28
        del refs
    eventually(lambda: used(ray) <= before, "all of it is freed")


def test_what_an_actor_was_made_with_lives_as_long_as_it_keeps_it(ray: Any, nothing_kept: Any) -> None:
    @ray.remote(num_cpus=0)
    class Keeper:
        def __init__(self, array: Any, refs: list[Any]) -> None:
            self.refs = refs

        def first(self) -> float:
            return float(ray.get(self.refs[0])[0])

        def drop(self) -> None:
            self.refs.clear()

    before = used(ray)
    keeper = Keeper.remote(np.zeros(MB), [ray.put(np.full(MB, 2.0))])
    assert ray.get(keeper.first.remote()) == 2.0
    eventually(lambda: used(ray) - before < 9 * MB, "the array was let go")
    assert ray.get(keeper.first.remote()) == 2.0
    ray.get(keeper.drop.remote())
    eventually(lambda: used(ray) <= before, "the rest as well")
    ray.kill(keeper)


# ---- sessions of their own


def test_200_mb_in_and_out_of_a_store_of_its_own() -> None:
    ended = run("""
        import numpy as np
        ray.init(num_cpus=1, object_store_memory=500 << 20, configure_logging=False)
        array = np.arange(25 << 20)
        back = ray.get(ray.put(array))
        assert (back == array).all()
        made = ray.get(ray.remote(lambda: np.arange(25 << 20)).remote())
        assert (made == back).all()
    """)
    assert ended.returncode == 0, ended.stderr


FULL = """
import numpy as np
from miniray import api
ray.init(num_cpus=1, object_store_memory=80 << 20, configure_logging=False)
store = api.connected_worker().store
MB = 1 << 20
"""


def test_what_is_not_referenced_makes_room_without_spilling() -> None:
    ended = run(FULL + """
for n in range(30):
    assert ray.get(ray.put(np.full(20 * MB, n, np.uint8)))[-1] == n
spilled = os.path.join(api.connected_worker().session_dir, "spill")
assert not os.path.isdir(spilled) or not os.listdir(spilled)
""")
    assert ended.returncode == 0, ended.stderr


def test_what_is_referenced_is_spilled_and_comes_back() -> None:
    ended = run(FULL + """
refs = [ray.put(np.full(10 * MB, n, np.uint8)) for n in range(24)]
for n, ref in enumerate(refs):
    array = ray.get(ref)
    assert array[0] == array[-1] == n, n
    del array
total = ray.remote(lambda *arrays: sum(int(a[5]) for a in arrays))
assert ray.get(total.remote(*refs[:4])) == 6
del refs, ref
deadline = time.monotonic() + 10
while store.stats()["used"]:
    assert time.monotonic() < deadline, store.stats()
    time.sleep(0.01)
spilled = os.path.join(api.connected_worker().session_dir, "spill")
while os.path.isdir(spilled) and os.listdir(spilled):
    assert time.monotonic() < deadline, os.listdir(spilled)
    time.sleep(0.01)
""")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("damage", ["a bit", "the end", "the file"])
def test_a_damaged_file_concerns_the_objects_in_it_and_nothing_else(damage: str) -> None:
    """What a task made is made again; what was put is lost, and the error names the file."""
    code = """
        import glob
        import numpy as np

        ray.init(num_cpus=2, object_store_memory=80 << 20, configure_logging=False)

        @ray.remote
        def make(number):
            return np.full(2_000_000, number)

        refs = [ray.put(np.full(2_000_000, number)) for number in range(4)]
        refs += [make.remote(number) for number in range(4, 8)]
        ray.wait(refs, num_returns=len(refs))
        from miniray import session
        directory = session._daemon.session_dir
        say(ready=True)
        input()
        files = glob.glob(directory + "/spill/*.spill")
        for path in files:
            if sys.argv[1] == "the file":
                os.unlink(path)
            elif sys.argv[1] == "the end":
                os.truncate(path, 100)
            else:
                with open(path, "r+b") as file:
                    for at in range(1000, os.path.getsize(path), 1_000_000):
                        file.seek(at)
                        file.write(b"?")
        right, errors = 0, []
        for number, ref in enumerate(refs):
            try:
                right += int(ray.get(ref, timeout=60)[-1]) == number
            except ray.exceptions.ObjectLostError as error:
                errors.append(str(error))
        say(files=len(files), right=right, errors=errors)
        del ref, refs
        say(more=int(ray.get(make.remote(9), timeout=60)[0]))
    """
    with Script(code.replace("sys.argv[1]", repr(damage))) as driver:
        driver.hear()
        driver.go_on()
        said = driver.hear()
        assert said["files"] and said["right"] >= 4 and said["right"] + len(said["errors"]) == 8
        assert said["errors"] and all(".spill" in text and "made by put()" in text for text in said["errors"])
        assert driver.hear()["more"] == 9


FAR_AWAY = """
import os
from fsspec.implementations.local import LocalFileSystem, LocalFileOpener

def look(what):
    if os.path.exists(os.environ["FAR_TROUBLE"] + what):
        raise RuntimeError("the network is down")

class FarFile(LocalFileOpener):
    def read(self, length=-1):
        look("read")
        return self.f.read(length)

    def write(self, data):
        if len(data) > 1000:
            self.f.write(data[:1000])
            look("write")
            data = data[1000:]
            return 1000 + self.f.write(data)
        return self.f.write(data)

class Far(LocalFileSystem):
    protocol = "far"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("far://"))

    def _open(self, path, mode="rb", **options):
        return FarFile(path, mode, fs=self)
"""


@pytest.fixture
def far(tmp_path: Path) -> dict[str, str]:
    """The environment of a session that spills to a file system of an installed package."""
    package = tmp_path / "package"
    (package / "far-1.dist-info").mkdir(parents=True)
    (package / "far-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: far\nVersion: 1\n")
    (package / "far-1.dist-info" / "entry_points.txt").write_text("[fsspec.specs]\nfar = far:Far\n")
    (package / "far.py").write_text(FAR_AWAY)
    return {
        "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{package}", "FAR_TROUBLE": f"{tmp_path}/trouble-",
        "MINIRAY_SPILL_DIR": f"far://{tmp_path}/far"}  # fmt: skip


@pytest.mark.slow
def test_a_far_file_system_may_fail_and_is_left_empty(tmp_path: Path, far: dict[str, str]) -> None:
    def files() -> list[Path]:
        return [path for path in (tmp_path / "far").rglob("*") if path.is_file()]

    with Script(FULL + """
from miniray import session
refs = [ray.put(np.full(10 * MB, n, np.uint8)) for n in range(16)]
say(right=sum(int(ray.get(ref)[-1]) == n for n, ref in enumerate(refs)))
input()
try:
    refs += [ray.put(np.full(10 * MB, n, np.uint8)) for n in range(16, 28)]
except ray.exceptions.OutOfDiskError as error:
    say(error=str(error))
input()
deadline = time.monotonic() + 30
while len(refs) < 28:
    try:
        refs.append(ray.put(np.full(10 * MB, len(refs), np.uint8)))
    except ray.exceptions.OutOfDiskError:     # for a second nothing is tried again
        assert time.monotonic() < deadline
        time.sleep(0.05)
say(right=sum(int(ray.get(ref)[-1]) == n for n, ref in enumerate(refs)))
input()
errors, right = [], 0
for n, ref in enumerate(refs):
    try:
        right += int(ray.get(ref, timeout=60)[-1]) == n
    except ray.exceptions.ObjectLostError as error:
        errors.append(str(error))
say(right=right, errors=errors)
input()
del ref
refs = refs[-1:]
refs += [ray.put(np.full(10 * MB, n, np.uint8)) for n in range(10)]
say(right=sum(int(ray.get(ref)[-1]) == n for n, ref in enumerate(refs[1:])))
refs = ref = None
input()
refs = [ray.put(np.full(10 * MB, n, np.uint8)) for n in range(16)]
say(raylet=session._daemon.pid)
input()
""", **far) as driver:
        assert driver.hear()["right"] == 16
        assert 0 < len(files()) < 10, "several objects are in one file"
        Path(far["FAR_TROUBLE"] + "write").touch()
        driver.go_on()
        error = driver.hear()["error"]
        assert "RuntimeError: the network is down" in error and f"far://{tmp_path}/far/" in error, error
        Path(far["FAR_TROUBLE"] + "write").unlink()
        driver.go_on()
        assert driver.hear()["right"] == 28, "what could not be written was kept"
        Path(far["FAR_TROUBLE"] + "read").touch()
        driver.go_on()
        said = driver.hear()
        assert said["errors"] and said["right"] and said["right"] + len(said["errors"]) == 28
        assert all("the network is down" in error for error in said["errors"])
        Path(far["FAR_TROUBLE"] + "read").unlink()
        driver.go_on()
        assert driver.hear()["right"] == 10
        eventually(lambda: not files(), "what is freed is deleted")
        driver.go_on()
        raylet = driver.hear()["raylet"]
        assert files()
        kill(raylet)
        eventually(lambda: not list((tmp_path / "far").iterdir()), "a killed raylet leaves nothing")


@pytest.mark.slow
@pytest.mark.parametrize("url", ["memory://", "file://{}/far", "far://{}/far"])
def test_a_place_of_any_scheme_has_a_limit_and_goes_with_the_session(
    tmp_path: Path, far: dict[str, str], url: str
) -> None:
    far.update(MINIRAY_SPILL_DIR=url.format(tmp_path), MINIRAY_SPILL_MAX_BYTES=str(100 * MB))
    ended = run(FULL + """
os.chdir(sys.argv[1])
refs = [ray.put(np.full(10 * MB, n, np.uint8)) for n in range(14)]
assert [int(ray.get(ref)[-1]) for ref in refs] == list(range(14))
try:
    refs += [ray.put(np.full(10 * MB, n, np.uint8)) for n in range(14)]
except ray.exceptions.OutOfDiskError as error:
    assert "MINIRAY_SPILL_MAX_BYTES" in str(error), error
else:
    raise AssertionError("280 MB in 80 + 100")
deadline, right = time.monotonic() + 30, 0
while right < 14:
    try:
        assert ray.get(refs[right])[-1] == right
        right += 1
    except ray.exceptions.OutOfDiskError:    # what came last is being freed
        assert time.monotonic() < deadline
        time.sleep(0.05)
""".replace("sys.argv[1]", repr(str(tmp_path))), **far)
    assert ended.returncode == 0, ended.stderr
    assert [path for path in tmp_path.rglob("*") if path.suffix == ".spill" or "miniray-" in path.name] == []


def test_a_full_disk_is_an_error_of_the_objects_that_need_it_and_of_no_other(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64 * MB) as disk:
        ended = run(FULL + """
refs, errors = [], []
make = ray.remote(lambda n: np.full(10 * MB, n, np.uint8))
for n in range(20):
    try:
        refs.append(ray.put(np.full(10 * MB, n, np.uint8)))
    except ray.exceptions.OutOfDiskError as error:
        errors.append(str(error))
assert 10 <= len(refs) < 20, len(refs)
assert all(os.environ["MINIRAY_SPILL_DIR"] in text and "% full" in text for text in errors), errors
try:
    ray.get(make.remote(0), timeout=60)
    raise AssertionError("there was room")
except ray.exceptions.OutOfDiskError as error:
    assert os.environ["MINIRAY_SPILL_DIR"] in str(error), error
assert ray.get(ray.remote(lambda: 5).remote(), timeout=60) == 5
for n, ref in enumerate(refs):      # each in place of another one that is on disk already, or not at all
    try:
        assert ray.get(ref, timeout=60)[-1] == n
    except ray.exceptions.OutOfDiskError as error:
        errors.append(str(error))
del refs[4:], ref
deadline = time.monotonic() + 30
def patiently(make_ref):        # until the raylet has heard what was freed
    while True:
        try:
            return ray.get(make_ref(), timeout=60)[-1]
        except ray.exceptions.OutOfDiskError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
assert patiently(lambda: make.remote(7)) == 7
assert [patiently(lambda: ref) for ref in refs] == [0, 1, 2, 3]
""", MINIRAY_SPILL_DIR=str(disk))
        assert ended.returncode == 0, ended.stderr
        assert not list(disk.iterdir())


def test_an_object_that_can_never_fit_is_an_error_with_figures() -> None:
    ended = run(FULL + """
try:
    ray.put(np.zeros(100 * MB, np.uint8))
except ray.exceptions.ObjectStoreFullError as error:
    say(error=str(error))
try:
    ray.get(ray.remote(lambda: np.zeros(100 * MB, np.uint8)).remote())
except ray.exceptions.ObjectStoreFullError as error:
    say(error=str(error))
assert ray.get(ray.put(1)) == 1
""")
    errors = [line for line in ended.stdout.splitlines() if line.startswith('{"error"')]
    assert len(errors) == 2, ended
    for error in errors:
        assert "100.0 MiB" in error and "80.0 MiB" in error, error


@pytest.mark.slow
def test_pinned_values_that_fill_the_store_are_named_in_the_error() -> None:
    """Views that live cannot be moved away."""
    with Script(FULL + """
views = [ray.get(ray.put(np.full(20 * MB, n, np.uint8))) for n in range(3)]
try:
    ray.put(np.zeros(30 * MB, np.uint8))
except ray.exceptions.ObjectStoreFullError as error:
    say(error=str(error))
assert [view[0] for view in views] == [0, 1, 2]
del views
ray.put(np.zeros(30 * MB, np.uint8))
say(error="")
""") as driver:
        began = time.monotonic()
        error = driver.hear()["error"]
        assert time.monotonic() - began < 20
        assert "30.0 MiB in the object store of 80.0 MiB" in error, error
        assert "60.0 MiB freed already but still read" in error, error
        assert driver.hear() == {"error": ""}
        assert driver.wait() == 0


def test_freed_and_lost_objects_raise_typed_errors(ray: Any) -> None:
    ref = ray.put(np.zeros(MB))
    data = ref.binary()
    store(ray).delete(data)     # as if the node had lost it
    with pytest.raises(exceptions.ObjectReconstructionFailedError, match=ref.hex()) as caught:
        ray.get(ref, timeout=10)
    assert caught.value.reason == "PUT"

    @ray.remote
    def make() -> Any:
        return np.ones(MB)

    made = make.remote()
    assert ray.get(made)[0] == 1
    store(ray).delete(made.binary())
    assert ray.get(made, timeout=10)[0] == 1, "its task runs again"


def test_a_task_runs_again_with_its_arguments_before_its_event_is_sent(ray: Any) -> None:
    """The arguments of a finished task are needed as long as one of its objects may get lost."""

    @ray.remote
    def make(size: int) -> Any:
        return np.ones(size)

    @ray.remote
    def last(array: Any, factor: int) -> Any:
        return array * factor

    first = make.remote(MB)
    second = last.remote(first, 3)
    assert ray.get(second)[0] == 3
    lost = first.binary()
    del first
    store(ray).delete(lost)
    store(ray).delete(second.binary())
    assert ray.get(second, timeout=10)[0] == 3


def test_what_is_remembered_to_rebuild_objects_has_a_limit(ray: Any) -> None:
    from miniray import api

    worker = api.connected_worker()
    lineage = worker.owner.lineage
    usual = lineage.limit_bytes

    @ray.remote
    def make(payload: bytes) -> Any:
        return np.ones(MB)

    try:
        with worker.lock:
            lineage.limit_bytes = lineage.bytes + 150_000
        older = make.remote(b"x" * 90_000)
        ray.get(older)
        younger = make.remote(b"x" * 90_000)
        ray.get(younger)
        store(ray).delete(older.binary())
        store(ray).delete(younger.binary())
        assert ray.get(younger, timeout=10)[0] == 1
        lost = exceptions.ObjectReconstructionFailedError
        with pytest.raises(lost, match="MINIRAY_MAX_LINEAGE_BYTES") as caught:
            ray.get(older, timeout=10)
        assert caught.value.reason == "LINEAGE_EVICTED"
    finally:
        with worker.lock:
            lineage.limit_bytes = usual

"""What workers print appears in the driver: whole, in order, under its name, on the right stream."""

from __future__ import annotations

import re
import time

from tests.system.support import Script, run

INIT = "ray.init(num_cpus=2, object_store_memory=100 << 20, configure_logging=False)\n"

PROGRAM = INIT + """
@ray.remote
def f(n):
    for i in range(n):
        print("out", i)
        print("err", i, file=sys.stderr)
    os.write(1, b"from C\\n")

@ray.remote
class Counter:
    def __init__(self):
        print("born")

    def count(self):
        print("no line break", end="")

@ray.remote
class Named:
    def __repr__(self):
        return "Named(7)"

    def speak(self):
        subprocess.run(["echo", "a child of the actor"], check=True)
        print("with a name")
"""


def told(text: str, name: str) -> list[str]:
    """The lines of one prefix name."""
    return re.findall(rf"^\({re.escape(name)} pid=\d+\) (.*)$", text, re.MULTILINE)


def test_lines_come_under_their_names_and_none_is_lost_at_shutdown() -> None:
    """The program ends right behind its last result."""
    ended = run(PROGRAM + """
    ray.get(f.remote(300))
    counter, named = Counter.remote(), Named.remote()
    ray.get([counter.count.remote(), named.speak.remote()])
    """.replace("\n    ", "\n"), RAY_DEDUP_LOGS="0")
    assert ended.returncode == 0, ended.stderr
    assert told(ended.stdout, "f") == [f"out {i}" for i in range(300)] + ["from C"]
    assert told(ended.stderr, "f") == [f"err {i}" for i in range(300)]
    assert told(ended.stdout, "Counter") == ["born", "no line break"]
    assert sorted(told(ended.stdout, "Named(7)")) == ["a child of the actor", "with a name"]
    assert ":task_name:" not in ended.stdout + ended.stderr and ":job_id:" not in ended.stdout + ended.stderr


def test_the_lines_of_many_workers_are_all_there_and_in_order() -> None:
    ended = run(INIT + """
    @ray.remote(num_cpus=0.1)
    def chat(worker):
        for i in range(200):
            print(f"worker {worker} line {i}")

    ray.get([chat.remote(n) for n in range(8)])
    """.replace("\n    ", "\n"), RAY_DEDUP_LOGS="0")
    lines = told(ended.stdout, "chat")
    assert len(lines) == 8 * 200
    for n in range(8):
        assert [line for line in lines if line.startswith(f"worker {n} ")] == [
            f"worker {n} line {i}" for i in range(200)]


def test_a_line_appears_while_the_task_runs_and_the_driver_does_something_else() -> None:
    code = INIT + """
    @ray.remote
    def slow():
        print("on the way")
        time.sleep(1000)

    ref = slow.remote()
    say(ready=True)
    while True:
        pass
    """.replace("\n    ", "\n")
    with Script(code) as driver:
        driver.hear()
        began = time.monotonic()
        assert driver.process.stdout is not None
        assert re.fullmatch(r"\(slow pid=\d+\) on the way\n", driver.process.stdout.readline())
        assert time.monotonic() - began < 30


def test_the_last_words_of_a_worker_that_crashes_are_heard() -> None:
    ended = run(INIT + """
    @ray.remote(max_retries=0)
    def crash():
        print("before", flush=True)
        print("why", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGSEGV)

    try:
        ray.get(crash.remote())
    except ray.exceptions.WorkerCrashedError as error:
        sys.stdout.write(f"error: {error}\\n")
    """.replace("\n    ", "\n"))
    assert told(ended.stdout, "crash") == ["before"], ended.stderr
    assert told(ended.stderr, "crash")[0] == "why"
    assert "Fatal Python error: Segmentation fault" in ended.stderr, "the stack of the crash"
    error = ended.stdout[ended.stdout.index("error:") :]
    assert "SIGSEGV" in error and "in crash" in error and ":task_name:" not in error


def test_equal_lines_are_shown_once_unless_told_otherwise() -> None:
    code = INIT + """
    @ray.remote(num_cpus=0.5)
    class Member:
        def report(self):
            print("member is ready")

    members = [Member.remote() for _ in range(4)]
    ray.get([member.report.remote() for member in members])
    """.replace("\n    ", "\n")
    once = told(run(code).stdout, "Member")
    assert len(once) == 2 and once[1].startswith("member is ready [repeated 3x across cluster]")
    assert told(run(code, RAY_DEDUP_LOGS="0").stdout, "Member") == ["member is ready"] * 4


def test_log_to_driver_off_shows_nothing() -> None:
    for init, environment in (("log_to_driver=False,", {}), ("", {"RAY_LOG_TO_DRIVER": "0"})):
        ended = run(f"""
ray.init({init} num_cpus=1, object_store_memory=100 << 20, configure_logging=False)
ray.get(ray.remote(lambda: print("hush")).remote())
""", **environment)
        assert ended.returncode == 0 and ended.stdout == ended.stderr == ""


def test_a_driver_whose_terminal_stands_still_goes_on() -> None:
    """Nobody reads the pipe: the output waits, tasks do not."""
    code = INIT + """
    @ray.remote
    def shout():
        print("x" * 1000)

    ray.get([shout.remote() for _ in range(500)])
    os.write(2, b"DONE\\n")
    """.replace("\n    ", "\n")
    import os
    import subprocess
    import sys

    from tests.system.support import PRELUDE

    driver = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "RAY_DEDUP_LOGS": "0"})  # fmt: skip
    try:
        assert driver.stderr is not None and driver.stderr.readline() == b"DONE\n"
    finally:
        out, _ = driver.communicate(timeout=30)
    assert out.count(b"x" * 1000) == 500

"""What a training step frees stays with the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

STEPS = """
import ctypes, json, resource, threading
from miniray.train.memory import keep_freed

PR_SET_THP_DISABLE = 41  # huge pages would make the faults few, not cheap
ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)

def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        blocks = [bytes(1 << 20) for _ in range(80)]
        blocks = [bytearray(block) for block in blocks]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def loop():
    counts = [faults(2)]
    kept = keep_freed()
    faults(2)
    print(json.dumps([*counts, kept, faults(2)]))

thread = threading.Thread(target=loop)
thread.start()
thread.join()
"""


def run(**environment: str) -> list[int]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", STEPS], env=ours | environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found: list[int] = json.loads(done.stdout)
    return found


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="another C library than glibc")
def test_steps_in_a_thread_use_the_same_pages_again() -> None:
    before, kept, after = run()
    assert kept and before > 20_000 > 2_000 > after


def test_what_the_user_has_set_stays() -> None:
    before, kept, after = run(MALLOC_TRIM_THRESHOLD_="131072")
    assert not kept and after > before / 2

"""What is shown of stacks: the user's frames, and not the way by which every task is reached."""

from __future__ import annotations

import os
import subprocess

from miniray.runtime import own_code, process_look

STACK = f"""Fatal Python error: Segmentation fault

Stack (most recent call first):
  File "{os.__file__}", line 1 in open
  File "/srv/train.py", line 7 in step
  File "{own_code.PACKAGE}/runtime/executor.py", line 3 in execute
  File "{own_code.PACKAGE}/runtime/zygote.py", line 4 in serve

Extension modules: numpy.linalg (total: 1)
"""


def test_the_last_words_of_a_crash_end_with_the_users_frames() -> None:
    shown = own_code.without_entrance(STACK)
    assert "train.py" in shown and os.__file__ in shown and "Extension modules" in shown
    assert "executor.py" not in shown and "zygote.py" not in shown


def test_the_line_of_a_silent_process_is_the_users() -> None:
    assert process_look.user_line(STACK) == "/srv/train.py:7 in step"
    assert process_look.user_line("Thread 1:\n") == ""


def test_a_process_that_was_killed_does_not_live_before_anybody_has_heard_of_it() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        assert process_look.lives(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)      # ended, and not reaped
        assert not process_look.lives(process.pid)
    assert not process_look.lives(process.pid)

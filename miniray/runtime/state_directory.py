"""`$XDG_STATE_HOME/miniray` (~/.local/state/…): tables and logs that outlive their session.

Whoever can write there can put a database with actors of their own in the place of a head's, so it is
this user's alone, whatever the umask was when it was made. Standard library only; any process.
"""

from __future__ import annotations

import os


class NotOurs(PermissionError):
    """Somebody else has made it; the message says where and what to do."""


def place(*below: str) -> str:
    """The directory, or one below it; it need not be there."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(base, "miniray", *below)


def make(*below: str) -> str:
    """The same, made as far as it is not there, and closed to others. OSError, NotOurs."""
    for number in range(len(below) + 1):
        directory = place(*below[:number])
        make_private(directory)
        found = os.stat(directory)
        if found.st_uid not in (os.getuid(), 0):
            raise NotOurs(f"{directory} belongs to another user (uid {found.st_uid}), who can change what is "
                          "in it: let XDG_STATE_HOME name a directory of your own")
        if found.st_mode & 0o077 and found.st_uid == os.getuid():
            os.chmod(directory, 0o700)
    return place(*below)


def make_private(directory: str) -> None:
    """A directory, with those above it, that nobody else can enter; those that are there stay as they are."""
    if os.path.isdir(directory):
        return
    make_private(os.path.dirname(os.path.abspath(directory)))
    try:
        os.mkdir(directory, mode=0o700)
    except FileExistsError:
        if not os.path.isdir(directory):
            raise  # a file; else another process was faster

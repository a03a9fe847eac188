"""A cluster over SSH: `python -m cluster.ssh up|down HOST…`, the first host is the head's.

Needs on each host: an account that logs in without a password, and miniray at the same path as
here (--bin). The token travels through the standard input of ssh, never in a command line.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
TOKEN_FILE = Path("~/.config/miniray/ssh-token").expanduser()


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when every host did what it was told."""
    parser = argparse.ArgumentParser(prog="python -m cluster.ssh", description=__doc__)
    parser.add_argument("what", choices=("up", "down"))
    parser.add_argument("hosts", nargs="+", metavar="HOST", help="[user@]host; the first one is the head's")
    parser.add_argument("--port", type=int, default=6379)
    parser.add_argument("--bin", default=str(Path(sys.executable).parent), help="folder of `miniray` there")
    options = parser.parse_args(argv)
    return up(options) if options.what == "up" else down(options)


def up(options: argparse.Namespace) -> int:
    """Head and node on the first host, a node on each other one."""
    token = secrets.token_hex(32)
    first, *others = options.hosts
    head = address_of(first)
    command = ["start", "--head", "--host", head, "--port", str(options.port)]
    said = run(options, first, command, token)
    if said is None:
        return 1
    found = re.search(r"--address='([^']+)'", said)
    assert found is not None, said
    join = found[1]

    def add(host: str) -> bool:
        command = ["start", "--address", join, "--host", address_of(host)]
        return run(options, host, command, token) is not None

    with ThreadPoolExecutor(16) as pool:
        done = list(pool.map(add, others))
    TOKEN_FILE.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(TOKEN_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
    print(f"{1 + sum(done)} of {len(options.hosts)} hosts are up. On {first}:")
    print(f"  MINIRAY_ADDRESS={join} python program.py")
    print(f"The token is in {TOKEN_FILE}. End it with: python -m cluster.ssh down {' '.join(options.hosts)}")
    return 0 if all(done) else 1


def down(options: argparse.Namespace) -> int:
    """`miniray stop` on every host, the head's last."""
    with ThreadPoolExecutor(16) as pool:
        said = list(pool.map(lambda host: run(options, host, ["stop"]), options.hosts[1:]))
    said.append(run(options, options.hosts[0], ["stop"]))
    TOKEN_FILE.unlink(missing_ok=True)
    return 0 if None not in said else 1


def run(options: argparse.Namespace, host: str, command: list[str], token: str = "") -> str | None:
    """Run `miniray COMMAND` on a host. Returns what it said; None, with that on stderr, if it failed."""
    miniray = shlex.join([f"{options.bin}/miniray", *command])
    script = f"IFS= read -r MINIRAY_AUTH_TOKEN; export MINIRAY_AUTH_TOKEN; exec {miniray}"
    call = subprocess.run(
        [*SSH, host, script], input=token + "\n", capture_output=True, text=True, check=False
    )
    if call.returncode != 0:
        print(f"{host}: {(call.stderr or call.stdout).strip()}", file=sys.stderr)
        return None
    return call.stdout


def address_of(host: str) -> str:
    """The address that other machines reach a host at: what ssh itself would connect to."""
    settings = subprocess.run(["ssh", "-G", host], capture_output=True, text=True, check=True).stdout
    return next(line.split()[1] for line in settings.splitlines() if line.startswith("hostname "))


if __name__ == "__main__":
    sys.exit(main())

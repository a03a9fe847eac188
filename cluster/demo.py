"""`make demo`: a GAN trained on a small cluster, all of it on this machine.

One head and two nodes are started through the command line as on three machines, in a session
directory of their own; the training job joins by address. Everything but the results goes away
at the end, on Ctrl-C too. Results: ./out/demo.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

RESULTS = Path("out") / "demo"
WORKERS = 2
NODE = ("--num-cpus", "1", "--object-store-memory", "300000000")
SMALL = (
    "--width", "32", "--batch-size", "32", "--lr", "0.002", "--ema-decay", "0.998", "--time-limit", "170",
)  # fmt: skip
"""Networks of half the full width and small batches: digits to recognise in two or three minutes."""
STOPPED = 130
"""Exit code of a run that Ctrl-C ended."""


def main(argv: list[str] | None = None) -> int:
    """Run the demo; the exit code is the training's."""
    parser = argparse.ArgumentParser(prog="python -m cluster.demo", description=__doc__)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--save-dir", type=Path, default=RESULTS)
    options, training = parser.parse_known_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with cluster() as (address, environment):
            code = train(options, training, address, environment)
    except KeyboardInterrupt:
        code = STOPPED
    except subprocess.CalledProcessError as error:
        print(f"`{' '.join(error.cmd[1:5])} …` failed, exit code {error.returncode}", file=sys.stderr)
        code = 1
    if code == 0:
        tell(options.save_dir)
    return code


@contextlib.contextmanager
def cluster() -> Iterator[tuple[str, dict[str, str]]]:
    """One head and two nodes of one CPU each. Yields (address, environment that finds them)."""
    directory = tempfile.mkdtemp(prefix="mr-demo-", dir="/tmp")  # short: it holds unix sockets
    environment = os.environ | {"MINIRAY_TMPDIR": directory, "XDG_STATE_HOME": directory}
    for name in ("MINIRAY_ADDRESS", "RAY_ADDRESS"):
        environment.pop(name, None)
    try:
        print("starting one head and two nodes …", flush=True)
        said = miniray(environment, "start", "--head", "--port", "0", *NODE)
        found = re.search(r"--address='([^']+)'", said)
        assert found is not None, said
        for _ in range(WORKERS - 1):
            miniray(environment, "start", "--address", found[1], *NODE)
        print(miniray(environment, "list", "nodes", "--address", found[1]), flush=True)
        yield found[1], environment
    finally:
        # A second Ctrl-C must not interrupt the clean-up.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        miniray(environment, "stop", check=False)
        shutil.rmtree(directory, ignore_errors=True)
        signal.signal(signal.SIGINT, before)


def miniray(environment: dict[str, str], *arguments: str, check: bool = True) -> str:
    """Run the command line; returns what it printed."""
    command = [sys.executable, "-m", "miniray", *arguments]
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=check)
    return run.stdout.rstrip()


def train(
    options: argparse.Namespace, further: list[str], address: str, environment: dict[str, str]
) -> int:
    """The training job, as a user would start it; its exit code."""
    command = [
        "-m", "ml.gan.train", "--mode", "distributed", "--workers", str(WORKERS), "--address", address,
        "--epochs", str(options.epochs), "--save-dir", str(options.save_dir), *SMALL, *further,
    ]  # fmt: skip
    print(f"\n$ python {' '.join(command)}", flush=True)
    # In a session of its own: Ctrl-C reaches it once, from here.
    process = subprocess.Popen([sys.executable, *command], env=environment, start_new_session=True)
    try:
        return process.wait()
    except (KeyboardInterrupt, SystemExit):
        process.terminate()  # it saves a checkpoint and ends
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        return STOPPED
    finally:
        process.kill()
        process.wait()


def tell(folder: Path) -> None:
    """What to do next."""
    print(f"""
Everything is stopped. Results are in {folder}/. Next:
  the whole run       open {folder}/report.html
  more pictures       .venv/bin/python -m ml.gan.generate --model {folder}/generator.pth --num-images 100
  train for longer    make demo ARGS="--epochs 100 --resume"
  a cluster that stays:
    .venv/bin/miniray start --head
    MINIRAY_ADDRESS=auto .venv/bin/python examples/monte_carlo_pi.py
    .venv/bin/miniray status; .venv/bin/miniray stop""")


if __name__ == "__main__":
    sys.exit(main())

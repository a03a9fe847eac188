"""The command line itself: quick, lazy, and clear about wrong usage."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from miniray.cli import COMMANDS, cli, load
from miniray.commands import tables
from miniray.commands.options import json_map, label_map

ROOT = Path(__file__).resolve().parents[2]


def test_version_answers_within_150_ms() -> None:
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "miniray", "--version"]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # The CPU's time: what else runs on the machine does not count.
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert run.stdout.startswith("miniray, version ")
    assert min(times) < 0.150, times


def test_every_command_is_listed_and_loads() -> None:
    listed = CliRunner().invoke(cli, ["--help"]).output
    for name, (target, line) in COMMANDS.items():
        assert f"  {name} " in listed and line.split(".")[0] in listed
        helped = CliRunner().invoke(load(target), ["--help"])
        assert helped.exit_code == 0, helped.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["start"], "either --head, or --join"),
        (["start", "--head", "--address", "a:1"], "either --head, or --join"),
        (["start", "--head", "--resources", "many"], "NAME=VALUE"),
        (["start", "--head", "--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["start", "--head", "--tls-cert", "own.pem"], "--tls-ca"),
        (["list", "cows"], "cows"),
        (["dance"], "dance"),
    ],
)
def test_wrong_usage_says_what_is_wrong(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_rays_options_are_taken() -> None:
    arguments = ["start", "--dashboard-port", "8265", "--disable-usage-stats", "--include-dashboard=false"]
    result = CliRunner().invoke(cli, arguments)
    assert "either --head, or --join" in result.output


def test_maps_may_be_written_without_json() -> None:
    assert json_map(str)("zone=a,disk=ssd") == {"zone": "a", "disk": "ssd"}
    assert json_map(float)('{"TPU": 2}') == json_map(float)("TPU=2") == {"TPU": 2.0}


def test_tables_align_and_numbers_go_right() -> None:
    text = tables.table(("name", "n"), [("a", 5), ("long name", 12)])
    assert text.splitlines() == ["name        n", "a           5", "long name  12"]


def test_amounts_are_written_as_people_write_them() -> None:
    assert tables.resources({"CPU": 5_000, "memory": 2_000_000_000 * 10_000, "node:1.2.3.4": 1}) == (
        "CPU 0.5, memory 2.0 GB"
    )
    assert tables.duration(0.25) == "0.25 s"
    assert tables.duration(600) == "10 min"


@pytest.mark.parametrize(
    "text", ['{"gpu": "A100", "zone": "b"}', "gpu=A100,zone=b", '"gpu=A100,zone=b"', "'gpu=A100,zone=b'"]
)
def test_labels_in_every_form(text):
    assert label_map(text) == {"gpu": "A100", "zone": "b"}


@pytest.mark.parametrize("text", ["xxx", '{"gpu": 1}', '{"ray.io/node-id": "1"}', "a=b c", "-a=b", "{"])
def test_wrong_labels_are_refused(text):
    with pytest.raises(click.BadParameter, match="Label string is not a key-value pair"):
        label_map(text)

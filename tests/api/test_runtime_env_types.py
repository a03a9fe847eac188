"""Fields of a runtime environment set and read as dataclasses."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from miniray.runtime_env import RuntimeEnv
from miniray.runtime_env.types.pip import Pip


@dataclass
class Mount:
    paths: list[str]
    writable: bool


@dataclass
class Disks:
    mounts: list[Mount]
    by_name: dict[str, Mount]
    default: Mount | None
    label: str = ""


def test_a_dataclass_comes_back_as_it_was_set():
    disks = Disks([Mount(["/a"], False)], {"b": Mount(["/b", "/c"], True)}, None, "two")
    env = RuntimeEnv(env_vars={"A": "1"})
    env.set("disks", disks)
    read = RuntimeEnv.deserialize(env.serialize())
    assert read.get("disks", data_class=Disks) == disks
    assert read.get("disks")["mounts"] == [{"paths": ["/a"], "writable": False}]
    assert read.get("absent", data_class=Disks) is None
    with pytest.raises(TypeError, match="unexpected keyword argument .A."):
        read.get("env_vars", data_class=Disks)


def test_a_field_set_later_is_checked_like_one_given_at_first():
    env = RuntimeEnv()
    env.set("pip", Pip(packages=["six"]))
    assert env["pip"] == {"packages": ["six"], "pip_check": False}
    with pytest.raises(TypeError, match="env_vars"):
        env["env_vars"] = {"A": 1}

"""What daemons read out of a runtime environment: how long its making may take, what may be shown.

An environment travels as canonical JSON (`miniray.runtime_env`), "" for none. Pure.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

SETUP_TIMEOUT_S = 600.0
"""For an environment that does not say `config: {"setup_timeout_seconds": …}`."""

NEEDS_SETUP = ("working_dir", "py_modules", "pip", "uv", "conda", "container", "image_uri")
"""Fields for which something has to be made on the node before a worker starts."""

HIDDEN = "***"


@dataclass
class Result:
    """What a worker of this environment is started with."""

    cwd: str = ""
    path: list[str] = field(default_factory=list)
    """Directories to import from, first ones first."""
    python: str = ""
    """The interpreter of its virtual environment."""
    made: dict[str, int] = field(default_factory=dict)
    """Directories it uses -> bytes."""
    problem: str = ""


_KINDS: dict[str, type] = {
    "working_dir": str, "py_modules": list, "pip": dict, "uv": dict, "config": dict, "env_vars": dict,
    "worker_process_setup_hook": str,
}  # fmt: skip


def parse(runtime_env: str) -> dict[str, Any]:
    """The fields; {} for none, and without those that `malformed` complains of."""
    fields = _fields(runtime_env) or {}
    return {name: value for name, value in fields.items() if _is_of_its_kind(name, value)}


def malformed(runtime_env: str) -> str:
    """What is wrong with the text itself, "" for nothing: clients check it, but anybody may send one."""
    fields = _fields(runtime_env)
    if fields is None:
        return "the runtime_env is not a JSON object"
    wrong = [name for name, value in fields.items() if not _is_of_its_kind(name, value)]
    return f"the runtime_env's {wrong[0]!r} is not a {_KINDS[wrong[0]].__name__}" if wrong else ""


def _fields(runtime_env: str) -> dict[str, Any] | None:
    try:
        fields = json.loads(runtime_env) if runtime_env else {}
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _is_of_its_kind(name: str, value: Any) -> bool:
    if value is None or name not in _KINDS:
        return True
    if name == "py_modules":
        return isinstance(value, list) and all(isinstance(module, str) for module in value)
    return isinstance(value, _KINDS[name])


def needs_setup(fields: dict[str, Any]) -> bool:
    """Whether more than a process with these variables is asked for."""
    return any(fields.get(name) for name in NEEDS_SETUP)


def setup_limit_s(fields: dict[str, Any]) -> float:
    """How long the making may take, in seconds; infinite where the user said -1."""
    if not needs_setup(fields):
        return 0.0
    limit = (fields.get("config") or {}).get("setup_timeout_seconds", SETUP_TIMEOUT_S)
    if not isinstance(limit, (int, float)) or not limit > 0:
        return float("inf") if limit == -1 else SETUP_TIMEOUT_S
    return float(limit)


def shown(runtime_env: str) -> str:
    """The same JSON with the values of variables hidden: they may be secrets."""
    fields = parse(runtime_env)
    if fields.get("env_vars"):
        fields["env_vars"] = dict.fromkeys(fields["env_vars"], HIDDEN)
    if fields:
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return "{}" if runtime_env else ""

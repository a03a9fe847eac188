"""The environment of a job, task or actor: which fields there are and what they may hold.

A `RuntimeEnv` is a dict with its fields checked. What travels is canonical JSON; the raylet's
agent makes the environment before a worker starts. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

FIELDS = frozenset(
    {
        "env_vars",
        "working_dir",
        "py_modules",
        "pip",
        "uv",
        "conda",
        "py_executable",
        "excludes",
        "config",
        "worker_process_setup_hook",
        "container",
        "image_uri",
        "nsight",
        "rocprof-sys",
        "_ray_release",
        "_ray_commit",
        "_inject_current_ray",
    }
)


class RuntimeEnvConfig(dict):  # type: ignore[type-arg]
    """How an environment is made: `setup_timeout_seconds` (-1: no limit), `eager_install`."""

    def __init__(
        self, setup_timeout_seconds: int = 600, eager_install: bool = True, log_files: list[str] | None = None
    ) -> None:
        if not isinstance(setup_timeout_seconds, int):
            raise TypeError(f"setup_timeout_seconds must be of type int, got: {type(setup_timeout_seconds)}")
        if setup_timeout_seconds <= 0 and setup_timeout_seconds != -1:
            raise ValueError(
                f"setup_timeout_seconds must be greater than zero or equals to -1, "
                f"got: {setup_timeout_seconds}"
            )
        if not isinstance(eager_install, bool):
            raise TypeError(f"eager_install must be a boolean. got {type(eager_install)}")
        super().__init__(
            setup_timeout_seconds=setup_timeout_seconds,
            eager_install=eager_install,
            log_files=log_files or [],
        )


class RuntimeEnv(dict):  # type: ignore[type-arg]
    """A checked runtime environment: ``RuntimeEnv(env_vars={"A": "1"}, working_dir=".")``.

    TypeError or ValueError for a field of the wrong shape, and for combinations that exclude each
    other (pip and uv and conda).
    """

    def __init__(self, **fields: Any) -> None:
        super().__init__({name: value for name, value in fields.items() if value is not None})
        validate(self)

    def to_dict(self) -> dict[str, Any]:
        """The fields as a plain dict."""
        return dict(self)

    def serialize(self) -> str:
        """Canonical JSON."""
        return canonical(self)

    @classmethod
    def deserialize(cls, text: str) -> RuntimeEnv:
        """The environment that `serialize` wrote."""
        return cls(**json.loads(text))


def validate(env: Mapping[str, Any]) -> None:
    """TypeError or ValueError naming the field that will not do."""
    variables = env.get("env_vars")
    if variables is not None:
        if not isinstance(variables, dict):
            raise TypeError(
                f"runtime_env['env_vars'] must be of type Dict[str, str], got type: {type(variables)}"
            )
        for name, value in variables.items():
            if not isinstance(name, str):
                raise TypeError(
                    "runtime_env['env_vars'] must be of type Dict[str, str], "
                    f"but the key {name} is of type {type(name)}"
                )
            if not isinstance(value, str):
                raise TypeError(
                    "runtime_env['env_vars'] must be of type Dict[str, str], "
                    f"but the value {value} is of type {type(value)}"
                )
    working_dir = env.get("working_dir")
    if working_dir is not None and not isinstance(working_dir, str):
        raise TypeError(
            f"`working_dir` must be a string (either a local path or remote URI), got {type(working_dir)}."
        )
    modules = env.get("py_modules")
    if modules is not None and not isinstance(modules, (list, tuple)):
        raise TypeError(
            f"`py_modules` must be a list of strings, local paths, or imported modules, got {type(modules)}."
        )
    installers = [name for name in ("pip", "uv", "conda") if env.get(name)]
    if len(installers) > 1:
        raise ValueError(
            f"The '{installers[0]}' field and '{installers[1]}' field of runtime_env cannot be specified "
            "at the same time."
        )
    setup = env.get("config")
    if setup is not None and not isinstance(setup, RuntimeEnvConfig):
        if not isinstance(setup, dict):
            raise TypeError(
                f"runtime_env['config'] must be of type dict or RuntimeEnvConfig, got: {type(setup)}"
            )
        RuntimeEnvConfig(**setup)
    hook = env.get("worker_process_setup_hook")
    if hook is not None and not isinstance(hook, str) and not callable(hook):
        raise TypeError(f"Invalid type {type(hook)} for `worker_process_setup_hook`.")


def canonical(env: Mapping[str, Any] | None) -> str:
    """Canonical JSON of a checked environment; "" for none."""
    if not env:
        return ""
    if not isinstance(env, Mapping):
        raise TypeError(f"runtime_env must be a dict or a RuntimeEnv, got {type(env)}")
    validate(env)
    kept = {name: value for name, value in env.items() if value is not None}
    return json.dumps(kept, sort_keys=True, separators=(",", ":")) if kept else ""

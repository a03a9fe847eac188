"""The environment of a job, task or actor: which fields there are and what they may hold.

A `RuntimeEnv` is a dict with its fields checked. What travels is canonical JSON, in which local
files have become packages (`packages`) and installers' fields have one form (`requirements`); the
node makes the environment before a worker starts (`miniray.runtime.environments`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import types
from collections.abc import Mapping
from typing import Any

from miniray.runtime_env import packages, requirements
from miniray.runtime_env.packages import Package
from miniray.runtime_env.records import from_plain

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

    def __setitem__(self, name: str, value: Any) -> None:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        validate({name: value})
        super().__setitem__(name, value)

    def set(self, name: str, value: Any) -> None:
        """Set one field; a dataclass becomes the dict of its fields."""
        self[name] = value

    def get(self, name: str, default: Any = None, data_class: Any = None) -> Any:
        """One field, or `default`; as an instance of `data_class` where that is given."""
        value = super().get(name, default)
        return value if data_class is None or name not in self else from_plain(data_class, value)

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


def validate(env: Mapping[str, Any], *, of_job: bool = True) -> None:
    """TypeError or ValueError naming the field that will not do.

    Tasks and actors (`of_job` False) cannot bring local files: only the job's are uploaded.
    """
    _check_variables(env.get("env_vars"))
    _check_working_dir(env.get("working_dir"), of_job)
    _check_modules(env.get("py_modules"), of_job)
    _check_config(env.get("config"))
    excludes = env.get("excludes")
    if excludes is not None and not (
        isinstance(excludes, (list, tuple)) and all(isinstance(x, str) for x in excludes)
    ):
        raise TypeError(f"`excludes` must be a list of strings, got {excludes!r}.")
    installers = [name for name in ("pip", "uv", "conda") if env.get(name)]
    if len(installers) > 1:
        raise ValueError(
            f"The '{installers[0]}' field and '{installers[1]}' field of runtime_env cannot be specified "
            "at the same time."
        )
    for name in ("pip", "uv"):
        if env.get(name) is not None:
            requirements.normalized(name, env[name])
    hook = env.get("worker_process_setup_hook")
    if hook is not None and not isinstance(hook, str) and not callable(hook):
        raise TypeError(f"Invalid type {type(hook)} for `worker_process_setup_hook`.")
    if callable(hook) and not of_job:
        raise ValueError(
            "worker_process_setup_hook: a function can only be given to init(); a task or actor takes the "
            "name of an importable one, 'module.function'."
        )


def _check_variables(variables: Any) -> None:
    if variables is None:
        return
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


def _check_working_dir(directory: Any, of_job: bool) -> None:
    if directory is None:
        return
    if not isinstance(directory, (str, os.PathLike)):
        raise TypeError(
            f"`working_dir` must be a string (either a local path or remote URI), got {type(directory)}."
        )
    _check_place("working_dir", os.fspath(directory), (".zip",), of_job)


def _check_modules(modules: Any, of_job: bool) -> None:
    if modules is None:
        return
    if not isinstance(modules, (list, tuple)):
        raise TypeError(
            f"`py_modules` must be a list of strings, local paths, or imported modules, got {type(modules)}."
        )
    for module in modules:
        if not isinstance(module, (str, os.PathLike, types.ModuleType)):
            raise TypeError(
                "`py_modules` must be a list of file paths, URIs, or imported modules, got "
                f"{module!r} of type {type(module)}."
            )
        place = f"module {module.__name__}" if isinstance(module, types.ModuleType) else os.fspath(module)
        _check_place("py_modules", place, packages.READY_MADE, of_job)


def _check_place(field: str, place: str, endings: tuple[str, ...], of_job: bool) -> None:
    """A URI must name an archive; a local path is only for jobs."""
    if packages.is_uri(place):
        if not place.endswith(endings):
            raise ValueError(f"{field}: a URI must end in {' or '.join(endings)}, got {place!r}")
    elif not of_job:
        raise ValueError(
            f"{field}: {place!r} is not a URI. Local files are uploaded with the job: give them to "
            "init(runtime_env=...), or name an archive that every node can reach."
        )


def _check_config(setup: Any) -> None:
    if setup is None or isinstance(setup, RuntimeEnvConfig):
        return
    if not isinstance(setup, dict):
        raise TypeError(f"runtime_env['config'] must be of type dict or RuntimeEnvConfig, got: {type(setup)}")
    RuntimeEnvConfig(**setup)


def normalized(env: Mapping[str, Any]) -> dict[str, Any]:
    """A checked environment with each field in its one form; fields that are None are left out."""
    out = {name: value for name, value in env.items() if value is not None}
    for name in ("pip", "uv"):
        if name in out:
            out[name] = requirements.normalized(name, out[name])
    if "py_modules" in out:
        out["py_modules"] = list(out["py_modules"])
    return out


def localized(env: Mapping[str, Any] | None) -> tuple[str, list[Package]]:
    """Canonical JSON of a job's environment, and the packages to be uploaded for it.

    TypeError or ValueError for what will not do, a path that is not there for instance.
    """
    if not env:
        return "", []
    if not isinstance(env, Mapping):
        raise TypeError(f"runtime_env must be a dict or a RuntimeEnv, got {type(env)}")
    validate(env)
    fields, found = packages.localized(normalized(env))
    return _json(fields), found


def canonical(env: Mapping[str, Any] | None) -> str:
    """Canonical JSON of a checked environment; "" for none."""
    if not env:
        return ""
    if not isinstance(env, Mapping):
        raise TypeError(f"runtime_env must be a dict or a RuntimeEnv, got {type(env)}")
    validate(env)
    return _json(normalized(env))


def inherited(own: Mapping[str, Any] | None, outer: str) -> str:
    """Canonical JSON of a task's environment: its own fields over those of its job or parent.

    `env_vars` are merged, every other field replaces the outer one, and an installer replaces any
    other installer.
    """
    if not own:
        return outer
    fields: dict[str, Any] = json.loads(outer) if outer else {}
    mine = normalized(own)
    variables = {**(fields.get("env_vars") or {}), **(mine.get("env_vars") or {})}
    if any(mine.get(name) for name in _INSTALLERS):
        fields = {name: value for name, value in fields.items() if name not in _INSTALLERS}
    fields.update(mine)
    if variables:
        fields["env_vars"] = variables
    for name, value in own.items():
        if value is None:
            fields.pop(name, None)
    return _json(fields)


_INSTALLERS = ("pip", "uv", "conda")


def _json(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), default=_plain) if fields else ""


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, types.ModuleType) or callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}".lstrip(".")
    raise TypeError(f"runtime_env: {value!r} of type {type(value)} cannot be sent to another machine")

"""What `pip` and `uv` of a runtime environment ask for, in one form.

A list of requirements, the path of a requirements file, or a dict:

    {"packages": [...], "pip_check": False, "pip_version": "==23.1", "pip_install_options": [...]}
    {"packages": [...], "uv_check": False, "uv_version": "==0.4", "uv_pip_install_options": [...]}

all become `{"packages", "check", "version", "options"}`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

DEFAULT_OPTIONS = {"pip": ["--disable-pip-version-check"], "uv": []}

_OPTIONS_KEY = {"pip": "pip_install_options", "uv": "uv_pip_install_options"}


def normalized(tool: str, value: Any) -> dict[str, Any]:
    """The one form. TypeError or ValueError naming the part that will not do."""
    if isinstance(value, dict) and set(value) == {"packages", "check", "version", "options"}:
        return value
    if isinstance(value, dict):
        return _of_dict(tool, value)
    return _of_dict(tool, {"packages": value})


def _of_dict(tool: str, value: dict[str, Any]) -> dict[str, Any]:
    keys = {"packages", f"{tool}_check", f"{tool}_version", _OPTIONS_KEY[tool]}
    unknown = [key for key in value if key not in keys]
    if unknown:
        raise ValueError(f"runtime_env['{tool}'] has unknown keys {unknown}: the keys are {sorted(keys)}")
    if "packages" not in value:
        raise ValueError(f"runtime_env['{tool}'] must include the key 'packages', got {sorted(value)}")
    check = value.get(f"{tool}_check", False)
    if not isinstance(check, bool):
        raise TypeError(f"runtime_env['{tool}']['{tool}_check'] must be a bool, got {type(check)}")
    version = value.get(f"{tool}_version") or ""
    if not isinstance(version, str):
        raise TypeError(f"runtime_env['{tool}']['{tool}_version'] must be a string, got {type(version)}")
    options = value.get(_OPTIONS_KEY[tool])
    if options is not None and not _is_strings(options):
        raise TypeError(f"runtime_env['{tool}']['{_OPTIONS_KEY[tool]}'] must be a list of strings")
    return {"packages": _packages(tool, value["packages"]), "check": check, "version": version,
            "options": DEFAULT_OPTIONS[tool] if options is None else list(options)}


def _packages(tool: str, value: Any) -> list[str]:
    if isinstance(value, str):
        path = Path(value).expanduser()
        if not path.is_file():
            raise ValueError(f"runtime_env['{tool}']: {value!r} is not a requirements file")
        lines = (line.strip() for line in path.read_text().splitlines())
        return [line for line in lines if line and not line.startswith("#")]
    if not _is_strings(value):
        raise TypeError(
            f"runtime_env['{tool}'] must be a list of strings, the path of a requirements file or a dict, "
            f"got {value!r}"
        )
    return list(dict.fromkeys(value))


def _is_strings(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(x, str) for x in value)

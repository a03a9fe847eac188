"""`JobConfig`: what a driver tells of its job at `init`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from miniray.logging_config import LoggingConfig

__all__ = ["JobConfig", "LoggingConfig"]


class JobConfig:
    """Namespace, runtime environment and metadata of a job; `init`'s own arguments win."""

    def __init__(
        self,
        *,
        runtime_env: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
        ray_namespace: str | None = None,
        default_actor_lifetime: str = "non_detached",
        **_: Any,
    ) -> None:
        if default_actor_lifetime not in ("detached", "non_detached"):
            raise ValueError(
                f"Default actor lifetime must be one of `detached`, `non_detached`. {default_actor_lifetime}"
            )
        self.runtime_env = dict(runtime_env or {})
        self.metadata: dict[str, str] = {}
        self.ray_namespace = ray_namespace
        self.default_actor_lifetime = default_actor_lifetime
        for key, value in (metadata or {}).items():
            self.set_metadata(key, value)

    def set_metadata(self, key: str, value: str) -> None:
        """Attach a pair of strings to the job."""
        self.metadata[key] = value

    def set_runtime_env(self, runtime_env: Mapping[str, Any] | None, validate: bool = False) -> None:
        """Replace the environment."""
        self.runtime_env = dict(runtime_env or {})

    def set_ray_namespace(self, ray_namespace: str) -> None:
        """Replace the namespace."""
        self.ray_namespace = ray_namespace

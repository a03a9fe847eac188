"""Runtime environments of jobs, tasks and actors."""

from miniray.runtime_env.runtime_env import RuntimeEnv, RuntimeEnvConfig, canonical, validate

__all__ = ["RuntimeEnv", "RuntimeEnvConfig", "canonical", "validate"]

"""joblib's parallel loops on a cluster: ``register_ray()``, then ``parallel_backend("ray")``."""

from __future__ import annotations


def register_ray() -> None:
    """Make "ray" a backend of joblib. ImportError when joblib is not installed."""
    from joblib.parallel import register_parallel_backend

    from miniray.util.joblib.ray_backend import RayBackend

    register_parallel_backend("ray", RayBackend)


__all__ = ["register_ray"]

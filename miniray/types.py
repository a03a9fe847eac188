"""Types for annotations: ``def f(ref: ray.types.ObjectRef[int])``."""

from miniray.ids import ObjectRef

__all__ = ["ObjectRef"]

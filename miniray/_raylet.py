"""The public types that programs written for Ray import from its extension module."""

from miniray.generator import ObjectRefGenerator
from miniray.ids import ActorID, JobID, NodeID, ObjectID, ObjectRef, PlacementGroupID, TaskID, WorkerID

__all__ = [
    "ActorID",
    "JobID",
    "NodeID",
    "ObjectID",
    "ObjectRef",
    "ObjectRefGenerator",
    "PlacementGroupID",
    "TaskID",
    "WorkerID",
]

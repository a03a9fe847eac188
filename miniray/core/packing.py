"""Messages for many readers: encoded once, and deflated when they are large, for their rows are alike.

Copying a message into a packet and writing it costs the head as much as its bytes, once for every
reader; deflating it is paid once. Level 1: higher ones take longer and save little. Pure.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from miniray._proto import gcs_pb2 as gcs

LARGE_BYTES = 4 << 10
"""What is larger than this is deflated."""

_LEVEL = 1


def deflated(data: bytes) -> bytes:
    """An encoded message under zlib."""
    return zlib.compress(data, _LEVEL)


def packed_view(view: gcs.ClusterView) -> gcs.ClusterView:
    """The same view in encoded form."""
    data = view.SerializeToString()
    if len(data) < LARGE_BYTES:
        return gcs.ClusterView(packed=data)
    return gcs.ClusterView(deflated=[deflated(data)])


def unpack_view(view: gcs.ClusterView) -> None:
    """Add to `view` what it holds in encoded form, in order."""
    for piece in (*map(zlib.decompress, view.deflated), view.packed):
        view.MergeFromString(piece)


def packed_publications(publications: Sequence[gcs.Publication]) -> gcs.NodeMessage:
    """One message with all of them, in order."""
    if len(publications) == 1:
        return gcs.NodeMessage(publication=publications[0])
    data = gcs.Publications(publications=publications).SerializeToString()
    if len(data) >= LARGE_BYTES:
        data = gcs.Publications(deflated=deflated(data)).SerializeToString()
    return gcs.NodeMessage(publications=data)


def unpacked_publications(data: bytes) -> Sequence[gcs.Publication]:
    """What one message brought together, in order."""
    together = gcs.Publications.FromString(data)
    if together.deflated:
        together.MergeFromString(zlib.decompress(together.deflated))
    return together.publications

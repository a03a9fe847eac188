"""The living nodes' rows, in pages that are encoded once for all who join.

::

    rows ── 64 each ──▶ page │ page │ … │ last page
                          └─ deflated, kept ─┘  └─ as it is

Whoever joins is told of everybody. With n nodes that is n rows for each, so what a row costs must be
next to nothing: a joiner gets the pages that are encoded already, a quarter of their size, and changes
only the last one. A page is encoded anew when a row of it has changed and somebody joins.

Order of joining is kept. Pages of a cluster that has lost many nodes are small, and no fewer for it.
Pure; part of `core.members`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from miniray._proto import common_pb2 as pb
from miniray._proto import gcs_pb2 as gcs
from miniray.core.packing import deflated

PAGE_ROWS = 64


@dataclass(slots=True)
class _Page:
    rows: dict[bytes, pb.NodeInfo] = field(default_factory=dict)
    plain: bytes = b""
    """The rows as an encoded `ClusterView`; b"": to be made."""
    deflated: bytes = b""


class Roster:
    """See the module head."""

    def __init__(self) -> None:
        self.rows: dict[bytes, pb.NodeInfo] = {}
        self._pages = [_Page()]
        self._page_of: dict[bytes, _Page] = {}

    def put(self, info: pb.NodeInfo) -> None:
        """A node has come, or come again."""
        node_id = info.node_id
        page = self._page_of.get(node_id)
        if page is None:
            page = self._pages[-1]
            if len(page.rows) == PAGE_ROWS:
                page = _Page()
                self._pages.append(page)
            self._page_of[node_id] = page
        self.rows[node_id] = page.rows[node_id] = info
        page.plain = page.deflated = b""

    def drop(self, node_id: bytes) -> None:
        """A node has gone."""
        page = self._page_of.pop(node_id, None)
        if page is None:
            return
        del self.rows[node_id], page.rows[node_id]
        page.plain = page.deflated = b""
        if not page.rows and len(self._pages) > 1:
            self._pages = [other for other in self._pages if other is not page]

    def stale(self, node_id: bytes) -> None:
        """The node's row was changed in place: who joins from now on must see it."""
        page = self._page_of.get(node_id)
        if page is not None:
            page.plain = page.deflated = b""

    def whole(self) -> gcs.NodeMessage:
        """All rows, for a node that has just come."""
        message = gcs.NodeMessage()
        view = message.view
        view.full = True
        view.deflated.extend(map(_deflated, self._pages[:-1]))
        view.packed = _plain(self._pages[-1])
        return message

    def check(self) -> None:
        """Assert that pages and rows agree and that no page but the only one is empty."""
        assert [*self.rows] == [node_id for page in self._pages for node_id in page.rows]
        assert all(page.rows and len(page.rows) <= PAGE_ROWS for page in self._pages) or not self.rows
        for node_id, page in self._page_of.items():
            assert page.rows[node_id] is self.rows[node_id]


def _plain(page: _Page) -> bytes:
    if not page.plain:
        page.plain = gcs.ClusterView(nodes=page.rows.values()).SerializeToString()
    return page.plain


def _deflated(page: _Page) -> bytes:
    if not page.deflated:
        page.deflated = deflated(_plain(page))
        page.plain = b""
    return page.deflated

"""What `init` returns: where the session is."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import miniray
from miniray import session

if TYPE_CHECKING:
    from miniray.runtime.worker import CoreWorker


class RayContext(Mapping[str, Any]):
    """What `init` returns. `address_info` says where the session is; leaving the context ends it."""

    def __init__(self, address_info: dict[str, Any]) -> None:
        self.address_info = address_info
        self.dashboard_url: str | None = None
        self.python_version = ".".join(str(part) for part in sys.version_info[:3])
        self.ray_version = miniray.__version__
        self.ray_commit = ""

    def __getitem__(self, key: str) -> Any:
        warnings.warn(
            f'Accessing values through ctx["{key}"] is deprecated. Use ctx.address_info["{key}"] instead.',
            DeprecationWarning,
            stacklevel=2,
        )
        return self.address_info[key]

    def __len__(self) -> int:
        return len(self.address_info)

    def __iter__(self) -> Iterator[str]:
        return iter(self.address_info)

    def __enter__(self) -> RayContext:
        return self

    def __exit__(self, *_: object) -> None:
        session.shutdown()

    def disconnect(self) -> None:
        """End the session, as leaving the context does."""
        session.shutdown()

    def __repr__(self) -> str:
        return f"RayContext({self.address_info.get('address')!r})"


def address_of(worker: CoreWorker) -> str:
    """HOST:PORT of the session's GCS; the session directory when it listens on no port."""
    from pathlib import Path

    try:
        told = json.loads((Path(worker.session_dir) / "node.json").read_text())
    except (OSError, ValueError):
        told = {}
    return str(told.get("address") or worker.session_dir)


def address_info(worker: CoreWorker, address: str) -> dict[str, Any]:
    """Ray's fields of `RayContext.address_info`."""
    node = worker.node_info
    ip = node.host or "127.0.0.1"
    return {
        "address": address,
        "gcs_address": address,
        "node_id": node.node_id.hex(),
        "node_ip_address": ip,
        "raylet_ip_address": ip,
        "raylet_socket_name": node.socket_path,
        "object_store_address": node.socket_path,
        "session_dir": worker.session_dir,
        "session_name": os.path.basename(worker.session_dir),
        "temp_dir": os.path.dirname(worker.session_dir),
        "namespace": worker.namespace,
        "webui_url": "",
        "redis_address": None,
        "metrics_export_port": None,
        "dashboard_agent_listen_port": None,
    }

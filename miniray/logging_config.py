"""`LoggingConfig`: how a job's driver and workers log, and what each record says of where it was written.

`init(logging_config=LoggingConfig(encoding="JSON"))` sets the root logger up in the driver and in every
worker of its job. Workers learn of it with their job; a job without one imports nothing of this.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miniray.runtime.worker import CoreWorker

ENCODINGS = ("TEXT", "JSON")
TEXT_FORMAT = "%(asctime)s\t%(levelname)s %(filename)s:%(lineno)s -- %(message)s %(where)s"
ALWAYS = ("asctime", "levelname", "message", "filename", "lineno")
STANDARD = frozenset(
    {*vars(logging.makeLogRecord({})), "asctime", "message"} - {"args", "msg", "exc_info", "stack_info"}
)
"""Attributes of a record that may be asked for."""


@dataclass
class LoggingConfig:
    """Format and level of a job's logs.

    Args:
        encoding: "TEXT" or "JSON", one object per line.
        log_level: Of the root logger, for instance "INFO".
        additional_log_standard_attrs: Names of `logging.LogRecord` attributes to add, for instance "name".

    Raises:
        ValueError: An encoding, level or attribute that does not exist.
    """

    encoding: str = "TEXT"
    log_level: str = "INFO"
    additional_log_standard_attrs: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise ValueError(f"Invalid encoding type: {self.encoding}. Valid encoding types are: {ENCODINGS}")
        if not isinstance(logging.getLevelName(self.log_level), int):
            raise ValueError(f"Unknown level: {self.log_level!r}")
        unknown = [name for name in self.additional_log_standard_attrs if name not in STANDARD]
        if unknown:
            raise ValueError(f"Unknown python logging attributes: {', '.join(unknown)}")

    def to_json(self) -> str:
        """As it travels with the job."""
        attributes = list(self.additional_log_standard_attrs)
        return json.dumps({**asdict(self), "additional_log_standard_attrs": attributes})


class _Handler(logging.StreamHandler[Any]):
    """The one handler that a configuration has put on the root logger."""


class _Formatter(logging.Formatter):
    """A record, with the job, node, worker, task and actor that wrote it."""

    def __init__(self, config: LoggingConfig, worker: CoreWorker) -> None:
        super().__init__(TEXT_FORMAT)
        self._json = config.encoding == "JSON"
        self._more = tuple(config.additional_log_standard_attrs)
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        """One line of text or JSON; a text's traceback follows on lines of its own."""
        where = _where(self._worker)
        fields: dict[str, Any]
        if not self._json:
            record.message, record.asctime = record.getMessage(), self.formatTime(record)
            extra = {name: getattr(record, name) for name in self._more}
            fields = {**extra, **where, "timestamp_ns": time.time_ns()}
            record.where = " ".join(f"{name}={value}" for name, value in fields.items())
            return super().format(record)
        record.message = record.getMessage()
        record.asctime = self.formatTime(record)
        fields = {name: getattr(record, name) for name in (*ALWAYS, *self._more)}
        if record.exc_info:
            fields["exc_text"] = self.formatException(record.exc_info)
        return json.dumps({**fields, **where, "timestamp_ns": time.time_ns()}, default=str)


_formatters: list[tuple[logging.Handler, logging.Formatter | None]] = []
"""What the library's own handlers had before `install`."""


def _where(worker: CoreWorker) -> dict[str, str]:
    found = {
        "job_id": worker.job_id.hex(),
        "worker_id": worker.address[1].hex(),
        "node_id": worker.address[0].hex(),
    }
    context = worker.task_context()
    if context is not None:
        found["task_id"] = context.task_id.hex()
        found["task_name"] = context.name
        if context.actor_id:
            found["actor_id"] = context.actor_id.hex()
    return found


def install(worker: CoreWorker, text: str) -> None:
    """Set the root logger of this process up as its job says; what the library logs looks alike."""
    config = LoggingConfig(**json.loads(text))
    root = logging.getLogger()
    remove()
    handler = _Handler()
    handler.setFormatter(_Formatter(config, worker))
    root.addHandler(handler)
    root.setLevel(config.log_level)
    for own in logging.getLogger("miniray").handlers:
        _formatters.append((own, own.formatter))
        own.setFormatter(handler.formatter)


def remove() -> None:
    """The session has ended: what `install` has done goes."""
    while _formatters:
        own, formatter = _formatters.pop()
        own.setFormatter(formatter)
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one, _Handler)]:
        root.removeHandler(handler)

"""Every knob of miniray, once: type, default, environment names and why one would turn it.

The environment is asked for `MINIRAY_<NAME>` first, then for the name a Ray user would have set.
Values are read when the process starts using them (`get`), so a test or a program may set the
environment before `init()`. Knobs that a cluster must agree on travel from the head to every
process at registration as JSON (`overrides` / `adopt`).

Any thread; `adopt` is called once per session, before anything reads a knob.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

KB = 1024
MB = 1024 * KB
GB = 1024 * MB


@dataclass(frozen=True)
class Knob:
    """One setting. `default` fixes the type: bool, int, float or str."""

    name: str
    default: bool | int | float | str
    reason: str
    ray: tuple[str, ...] = ()
    """Ray's names for it, in the order they are asked."""

    @property
    def environment(self) -> tuple[str, ...]:
        """The environment variables that set it, first match wins."""
        return (f"MINIRAY_{self.name.upper()}", *self.ray)


KNOBS = {
    knob.name: knob
    for knob in (
        # -- where things are
        Knob("address", "", "cluster to join when init() gets none", ("RAY_ADDRESS",)),
        Knob("namespace", "", "namespace of named actors when init() gets none", ("RAY_NAMESPACE",)),
        Knob("runtime_env", "", "JSON of the job's runtime_env when init() gets none", ("RAY_RUNTIME_ENV",)),
        Knob(
            "runtime_env_hook",
            "",
            "module.function that is given every job's runtime_env, or None, and returns the one to take",
            ("RAY_RUNTIME_ENV_HOOK",),
        ),
        Knob("job_metadata", "", "JSON of metadata that is added to the job's"),
        Knob("tmpdir", "", "parent of session directories instead of /tmp", ("RAY_TMPDIR", "TMPDIR")),
        Knob("auth_token", "", "token of the cluster to join", ("RAY_AUTH_TOKEN",)),
        Knob(
            "auth_token_path",
            "",
            "file that holds the token",
            ("MINIRAY_AUTH_TOKEN_FILE", "RAY_AUTH_TOKEN_PATH"),
        ),
        Knob("join", "", "join string of the cluster"),
        Knob("insecure_plaintext", False, "speak to a cluster beyond loopback without encryption"),
        Knob("tls_ca", "", "CA of an own PKI, with tls_cert and tls_key"),
        Knob("tls_cert", "", "certificate chain of an own PKI"),
        Knob("tls_key", "", "private key of an own PKI"),
        Knob("certificate_life_s", 86400.0, "certificates of daemons end after this, and are renewed before"),
        # -- what a node offers
        Knob(
            "override_resources",
            "",
            "JSON of resources that replace what was found",
            ("RAY_OVERRIDE_RESOURCES",),
        ),
        Knob("store_share", 0.3, "share of the machine's memory for the object store"),
        Knob("store_max_bytes", 200 * GB, "upper bound of the object store when its size is not given"),
        Knob("store_min_bytes", 75 * MB, "lower bound of the object store"),
        # -- tasks and objects
        Knob("task_max_retries", 3, "max_retries of tasks that do not say", ("RAY_TASK_MAX_RETRIES",)),
        Knob(
            "inline_bytes",
            100 * KB,
            "largest value that travels inside a message",
            ("RAY_max_direct_call_object_size",),
        ),
        Knob("inline_message_bytes", 10 * MB, "largest sum of inline values in one message"),
        Knob(
            "max_lineage_bytes",
            1 * GB,
            "lineage kept per owner for rebuilding lost objects",
            ("RAY_max_lineage_bytes",),
        ),
        Knob("lease_idle_s", 0.5, "an idle lease is given back after this"),
        Knob(
            "submit_limit", 1_000_000, "a driver's remote() blocks while more tasks than this are unfinished"
        ),
        Knob(
            "backpressure_objects",
            -1,
            "unconsumed values of a streaming generator before it pauses; -1: no limit",
        ),
        # -- workers
        Knob("worker_idle_s", 1.0, "idle workers beyond the number of CPUs end after this"),
        Knob("worker_start_timeout_s", 60.0, "a started worker must register within this"),
        Knob(
            "worker_nice",
            5,
            "how much nicer than the daemons workers run, so heartbeats survive a full machine",
            ("RAY_worker_niceness",),
        ),
        Knob("preload", "", "comma-separated modules that workers find imported already (torch, say)"),
        # -- scheduling
        Knob(
            "spread_threshold",
            0.5,
            "pack onto a node until this share is used, then spread",
            ("RAY_scheduler_spread_threshold",),
        ),
        # -- failure detection
        Knob("heartbeat_s", 0.5, "a raylet reports to the head this often"),
        Knob("node_silent_s", 10.0, "a silent node is dead after this"),
        Knob("node_refused_s", 2.0, "a node whose connection is refused is dead after this"),
        Knob("head_reconnect_s", 60.0, "how long nodes and drivers wait for a head to come back"),
        Knob("drain_s", 30.0, "how long a leaving node lets running work finish"),
        # -- memory
        Knob(
            "memory_guard",
            0.95,
            "share of host memory above which tasks are ended; 1 switches it off",
            ("RAY_memory_usage_threshold",),
        ),
        Knob("memory_check_s", 0.25, "how often memory is looked at; 0 switches the guard off"),
        Knob("spill_share", 0.8, "share of the store from which objects are spilled"),
        Knob(
            "spill_dir",
            "",
            "where spilled objects go; the session directory by default",
            ("RAY_object_spilling_directory",),
        ),
        Knob("spill_max_bytes", 0, "bytes of objects that a node keeps on disk at most; 0: no limit of ours"),
        Knob("chunk_bytes", 5 * MB, "piece of an object moved between nodes at once"),
        # -- what the user sees
        Knob("log_to_driver", True, "workers' output appears in the driver", ("RAY_LOG_TO_DRIVER",)),
        Knob(
            "logging_encoding",
            "",
            "TEXT or JSON: how a job's processes log when init() gets no logging_config",
            ("RAY_LOGGING_CONFIG_ENCODING",),
        ),
        Knob("dedup_logs", True, "equal lines of many workers appear once", ("RAY_DEDUP_LOGS",)),
        Knob("color_prefix", True, "each worker's prefix has a colour of its own", ("RAY_COLOR_PREFIX",)),
        Knob(
            "record_ref_creation_sites",
            False,
            "`miniray why` names the line at which a reference was made; every reference costs microseconds",
            ("RAY_record_ref_creation_sites",),
        ),
        Knob("task_events_kept", 100_000, "finished tasks that the head remembers per job"),
        Knob(
            "noset_cuda_visible_devices",
            False,
            "leave CUDA_VISIBLE_DEVICES alone",
            ("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES",),
        ),
        Knob(
            "accel_env_var_override_on_zero",
            False,
            "tasks and actors without GPUs see none, instead of what their node's processes see",
            ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",),
        ),
    )
}

PRIVATE = (
    "address", "auth_token", "auth_token_path", "job_metadata", "join", "logging_encoding",
    "runtime_env_hook", "tls_ca", "tls_cert", "tls_key", "tmpdir",
)  # fmt: skip
"""A process's own: these do not travel to the cluster."""

_adopted: dict[str, Any] = {}


def _parse(knob: Knob, text: str, source: str) -> Any:
    kind = type(knob.default)
    try:
        if kind is bool:
            value = text.strip().lower()
            if value not in ("0", "1", "true", "false", "yes", "no", ""):
                raise ValueError(text)
            return value in ("1", "true", "yes")
        return kind(float(text)) if kind is int else kind(text)
    except ValueError:
        raise ValueError(f"{source}={text!r}: expected {kind.__name__} ({knob.reason})") from None


def get(name: str) -> Any:
    """The value of a knob: environment, then what the cluster says, then the default.

    KeyError for an unknown name, ValueError (naming the variable) for text of the wrong type.
    """
    knob = KNOBS[name]
    for variable in knob.environment:
        text = os.environ.get(variable)
        if text:
            return _parse(knob, text, variable)
    return _adopted.get(name, knob.default)


def overrides() -> str:
    """JSON of the knobs that differ from their defaults here: what a head tells its cluster."""
    changed = {name: get(name) for name, knob in KNOBS.items() if get(name) != knob.default}
    for private in PRIVATE:
        changed.pop(private, None)
    return json.dumps(changed, sort_keys=True) if changed else ""


def adopt(text: str) -> None:
    """Take over a cluster's knobs (JSON of `overrides`); unknown names are left out."""
    _adopted.clear()
    if text:
        _adopted.update({name: value for name, value in json.loads(text).items() if name in KNOBS})


def table() -> list[tuple[str, str, str, str]]:
    """Rows (environment names, type, default, reason) for the documentation."""
    return [
        (", ".join(knob.environment), type(knob.default).__name__, str(knob.default), knob.reason)
        for knob in KNOBS.values()
    ]

"""util.metrics: what is recorded where, how it reaches the cluster, and how it reads."""

from __future__ import annotations

import pickle
import time
import uuid

import pytest

import miniray as ray
from miniray.exposition import exposition
from miniray.util.metrics import Counter, Gauge, Histogram, snapshots


def fresh(stem: str) -> str:
    return f"{stem}_{uuid.uuid4().hex}"


def reported(name: str) -> list[tuple[str, list]]:
    """(worker id, series) of a metric in each process that reported it."""
    return [
        (report["worker_id"], row["series"])
        for report in snapshots() for row in report["metrics"] if row["name"] == name
    ]  # fmt: skip


def eventually(condition, within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---- checks


def test_names_and_tags_are_checked():
    with pytest.raises(ValueError, match="Empty name"):
        Counter("")
    with pytest.warns(UserWarning, match="Invalid metric name"):
        Counter("9lives").inc()
    with pytest.raises(TypeError, match="tag_keys should be a tuple"):
        Counter(fresh("c"), tag_keys="route")
    with pytest.raises(TypeError, match="Tag keys must be str"):
        Counter(fresh("c"), tag_keys=(1,))
    counter = Counter(fresh("c"), tag_keys=("route", "code"))
    with pytest.raises(ValueError, match="Unrecognized tag key color"):
        counter.set_default_tags({"color": "red"})
    with pytest.raises(ValueError, match="Unrecognized tag key color"):
        counter.inc(tags={"color": "red"})
    with pytest.raises(TypeError, match="Tag values must be str"):
        counter.inc(tags={"route": 1})
    with pytest.raises(ValueError, match=r"Missing value for tag key\(s\): code"):
        counter.inc(tags={"route": "/"})


def test_values_are_checked():
    counter = Counter(fresh("c"))
    for wrong in (0, -1.0):
        with pytest.raises(ValueError, match="value must be >0"):
            counter.inc(wrong)
    with pytest.raises(TypeError, match="value must be int or float"):
        Gauge(fresh("g")).set("7")
    with pytest.raises(ValueError, match="boundaries argument should be provided"):
        Histogram(fresh("h"))
    with pytest.raises(ValueError, match="must be > 0"):
        Histogram(fresh("h"), boundaries=[0.0, 1.0])


def test_info_says_what_was_given():
    gauge = Gauge(fresh("g"), description="how warm", tag_keys=("room",)).set_default_tags({"room": "1"})
    assert gauge.info["description"] == "how warm" and gauge.info["tag_keys"] == ("room",)
    assert gauge.info["default_tags"] == {"room": "1"}
    assert Histogram(fresh("h"), boundaries=[2, 1]).info["boundaries"] == [1.0, 2.0]


def test_one_name_is_one_metric():
    name = fresh("c")
    Counter(name, tag_keys=("a",))
    with pytest.raises(ValueError, match="give the same ones, or another name"):
        Counter(name, tag_keys=("b",))


# ---- in a cluster


@pytest.mark.usefixtures("ray_shared")
def test_each_process_reports_what_it_recorded():
    name = fresh("served")

    @ray.remote(num_cpus=0)
    class Server:
        def __init__(self):
            self.served = Counter(name, tag_keys=("route",)).set_default_tags({"route": "/"})

        def serve(self, times):
            for _ in range(times):
                self.served.inc()
            self.served.inc(10, tags={"route": "/big"})

    servers = [Server.remote() for _ in range(2)]
    ray.get([server.serve.remote(3) for server in servers])
    Counter(name, tag_keys=("route",)).inc(tags={"route": "/"})
    eventually(lambda: len(reported(name)) == 3)
    found = sorted({tags[0]: value for tags, value in series}["/"] for _, series in reported(name))
    assert found == [1.0, 3.0, 3.0]


@pytest.mark.usefixtures("ray_shared")
def test_a_metric_travels_and_a_leaving_worker_reports():
    gauge = Gauge(fresh("depth"), tag_keys=("queue",)).set_default_tags({"queue": "in"})
    assert pickle.loads(pickle.dumps(gauge)).info == gauge.info

    @ray.remote(num_cpus=0)
    class Once:
        def run(self, metric):
            metric.set(7)
            ray.actor.exit_actor()

    once = Once.remote()
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(once.run.remote(gauge))
    eventually(lambda: reported(gauge.info["name"]))
    ((_, series),) = reported(gauge.info["name"])
    assert series == [[["in"], 7]]


# ---- as text


def test_prometheus_text():
    report = {
        "job_id": "01", "node_id": "aa", "worker_id": "bb",
        "metrics": [
            {"name": "served", "kind": "counter", "description": "all\nof it", "tag_keys": ["route"],
             "boundaries": [], "series": [[['/"x"'], 3.0]]},
            {"name": "seconds", "kind": "histogram", "description": "", "tag_keys": [],
             "boundaries": [0.1, 1.0], "series": [[[], [[2, 1, 1], 5.5]]]},
        ],
    }  # fmt: skip
    origin = 'JobId="01",NodeId="aa",WorkerId="bb"'
    assert exposition([report]).splitlines() == [
        r"# HELP served_total all\nof it",
        "# TYPE served_total counter",
        'served_total{route="/\\"x\\"",' + origin + "} 3.0",
        "# HELP seconds ",
        "# TYPE seconds histogram",
        "seconds_bucket{" + origin + ',le="0.1"} 2',
        "seconds_bucket{" + origin + ',le="1.0"} 3',
        "seconds_bucket{" + origin + ',le="+Inf"} 4',
        "seconds_sum{" + origin + "} 5.5",
        "seconds_count{" + origin + "} 4",
    ]

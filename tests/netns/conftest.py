"""Fixtures of the tests on several hosts: namespaces where there can be some, else a skip with the reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.netns.cluster import NODE_PORT, PORT, NetCluster
from tests.netns.network import Network, missing
from tests.netns.proxy import Proxy


def made(count: int, cpus: int, **options: Any) -> Iterator[NetCluster]:
    """A cluster on `count` hosts."""
    if missing():
        pytest.skip(missing())
    with Network(count) as network:
        cluster = NetCluster(network.hosts, [cpus] * count, directory(), **options)
        try:
            yield cluster
        finally:
            cluster.close()


def directory() -> str:
    """One more directory for what hosts write."""
    return f"{os.environ['MINIRAY_TMPDIR']}/{os.urandom(2).hex()}"


@pytest.fixture
def two_six() -> Iterator[NetCluster]:
    """Two hosts that speak IPv6 with one another."""
    yield from made(2, 1, six=True)


@pytest.fixture
def proxied() -> Iterator[tuple[NetCluster, Proxy]]:
    """Three hosts that reach one another only through a proxy, at addresses of its own."""
    if missing():
        pytest.skip(missing())
    with Network(4) as network:
        *hosts, middle = network.hosts
        seen_at = [f"{host.address}0" for host in hosts]
        routes = {}
        for host, address in zip(hosts, seen_at, strict=True):
            middle.add_address(address)
            for port in (PORT, NODE_PORT, NODE_PORT + 1):
                routes[address, port] = (host.address, port)
            for other in hosts:
                if other is not host:
                    host.lose_way_to(other)
        proxy = Proxy(middle, routes)
        cluster = None
        try:
            cluster = NetCluster(hosts, [1] * 3, directory(), seen_at=seen_at)
            yield cluster, proxy
        finally:
            if cluster is not None:
                proxy.tell("pass")
                cluster.close()
            proxy.close()


@pytest.fixture
def four() -> Iterator[NetCluster]:
    """A head with its node, and three nodes, for one test."""
    yield from made(4, 1)


@pytest.fixture(scope="module")
def shared_four() -> Iterator[NetCluster]:
    """The same for the tests of a module that leave it as they found it."""
    yield from made(4, 1)

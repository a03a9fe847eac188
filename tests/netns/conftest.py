"""Fixtures of the tests on several hosts: namespaces where there can be some, else a skip with the reason."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.netns.cluster import NetCluster
from tests.netns.network import Network, missing


def made(count: int, cpus: int) -> Iterator[NetCluster]:
    """A cluster on `count` hosts."""
    if missing():
        pytest.skip(missing())
    directory = f"{os.environ['MINIRAY_TMPDIR']}/{os.urandom(2).hex()}"
    with Network(count) as network:
        cluster = NetCluster(network, [cpus] * count, directory)
        try:
            yield cluster
        finally:
            cluster.close()


@pytest.fixture
def four() -> Iterator[NetCluster]:
    """A head with its node, and three nodes, for one test."""
    yield from made(4, 1)


@pytest.fixture(scope="module")
def shared_four() -> Iterator[NetCluster]:
    """The same for the tests of a module that leave it as they found it."""
    yield from made(4, 1)

"""A real Ray cluster on this machine: a head that runs nothing, and workers of one processor each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

STORE = 80 * 2**20
"""Bytes of a node's object store: the least that Ray takes is 75 MiB."""


@contextmanager
def workers(count: int = 2, environment: Mapping[str, str] = {}) -> Iterator[Any]:
    """A cluster of so many, which RAY_ADDRESS names within the block; they have the environment."""
    import ray
    from ray.cluster_utils import Cluster

    with mock.patch.dict(os.environ, {"RAY_USAGE_STATS_ENABLED": "0", **environment}):
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "object_store_memory": STORE,
                "include_dashboard": False,
            },
        )
        try:
            for _ in range(count):
                cluster.add_node(num_cpus=1, object_store_memory=STORE)
            cluster.wait_for_nodes()
            os.environ["RAY_ADDRESS"] = cluster.address
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()

"""TorchConfig: torch.distributed between the workers of a group.

Ranks find one another through the cluster's key-value store, so nothing listens for the rendezvous and no
port is agreed on. The tensors then travel between the processes by gloo or NCCL, on the network on
which the nodes reach one another; that traffic is the backend's own and is neither checked nor encrypted.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

from miniray.train.backend import BackendConfig
from miniray.train.session import TrainContext

INIT_METHODS = ("env", "tcp")


@dataclass
class TorchConfig(BackendConfig):
    """How the process group is made.

    Args:
        backend: "gloo" or "nccl"; None: NCCL where every worker has a GPU of its own, else gloo. NCCL
            refuses two workers on one GPU.
        init_method: "env" or "tcp", as in Ray Train; of no effect, as ranks meet through the cluster.
        timeout_s: How long a rank waits for the others, when starting and in each operation.
    """

    backend: str | None = None
    init_method: str = "env"
    timeout_s: float = 1800.0

    def __post_init__(self) -> None:
        if self.backend is not None and not (isinstance(self.backend, str) and self.backend):
            raise ValueError(f"backend={self.backend!r}: 'gloo', 'nccl', or None for what fits")
        if self.init_method not in INIT_METHODS:
            raise ValueError(f"init_method={self.init_method!r} is none of {INIT_METHODS}")
        if self.timeout_s <= 0:
            raise ValueError(f"timeout_s={self.timeout_s}: more than 0 seconds")

    def on_start(self, context: TrainContext, group: str) -> None:
        """Join the process group."""
        import torch
        import torch.distributed as dist

        from miniray.train.torch.device import choose_backend, get_device, get_gpu_name
        from miniray.util.collective.rendezvous import ClusterStore, KeyValues

        device = get_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        _use_the_nodes_network()
        timeout = timedelta(seconds=self.timeout_s)
        store = ClusterStore(KeyValues(group), "start", timeout)
        places = [""]
        if device.type == "cuda":
            store.set(f"gpu/{context.world_rank}", get_gpu_name())
            places = [store.get(f"gpu/{rank}").decode() for rank in range(context.world_size)]
        backend, reason = choose_backend(self.backend, places)
        if reason and context.world_rank == 0:
            print(reason, flush=True)
        dist.init_process_group(
            backend, store=store, rank=context.world_rank, world_size=context.world_size, timeout=timeout
        )

    def on_shutdown(self) -> None:
        """Leave the process group."""
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


def _use_the_nodes_network() -> None:
    """Have gloo and NCCL use the network interface of the node's address, unless the user named one."""
    import psutil

    from miniray.util import get_node_ip_address

    address = get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            if name != "lo":
                os.environ.setdefault("NCCL_SOCKET_IFNAME", name)

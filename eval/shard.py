"""One run over several processes (``torchrun``, ``accelerate launch``): each takes every n-th sample."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # shards do not end at the same time


@dataclass(frozen=True)
class Shard:
    """Process ``rank`` of ``world``."""

    rank: int = 0
    world: int = 1

    @classmethod
    def of_environment(cls) -> "Shard":
        """From ``RANK`` and ``WORLD_SIZE``, as launchers set them."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))

    def own(self, items: Sequence[T]) -> list[T]:
        return list(items[self.rank :: self.world])

    def wait(self) -> None:
        """Until every process is here."""
        if self.world == 1:
            return
        import torch.distributed as dist

        ours = not dist.is_initialized()
        if ours:
            dist.init_process_group("gloo", timeout=PATIENCE)
        dist.barrier()
        if ours:
            dist.destroy_process_group()

    def device(self, name: str) -> str:
        """``auto`` for one of several processes is the GPU of its own, where there are any."""
        if name != "auto" or self.world == 1:
            return name
        import torch

        count = torch.cuda.device_count()
        return f"cuda:{int(os.environ.get('LOCAL_RANK', self.rank)) % count}" if count else name

"""What a training process holds, cheap enough to ask at every step: its resident memory by kind, and its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lorikeet.train.optimizers._contract import Optimizer

# the kernel's names, and ours
_KINDS = {"VmRSS:": "rss_bytes", "RssFile:": "rss_file_bytes", "VmSwap:": "swap_bytes", "VmHWM:": "peak_rss_bytes"}


def memory_now(device: torch.device) -> dict[str, int]:
    """Bytes by kind: resident, of it pages of files (mapped weights, libraries), swapped out, the peak so far; on a
    GPU what tensors take there and their peak. Where there is no /proc the first four are missing."""
    found: dict[str, int] = {}
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, rest = line.partition("\t")
        if name in _KINDS:
            found[_KINDS[name]] = int(rest.split()[0]) * 1024
    if device.type == "cuda":
        found["device_bytes"] = torch.cuda.memory_allocated(device)
        found["peak_device_bytes"] = torch.cuda.max_memory_allocated(device)
    return found


def held_bytes(model: nn.Module, trained: Mapping[str, nn.Parameter], optimizer: Optimizer) -> dict[str, int]:
    """Bytes of the tensors that stay from step to step: the frozen ones (as they are kept: 4 bits count as 4 bits, a
    storage that several share once), the trained ones, and the optimizer's states of them."""
    own = {id(parameter) for parameter in trained.values()}
    frozen = (tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in own)
    states = (value for one in trained.values() for value in optimizer.begin(one.detach().to("meta")).values())
    return {
        "frozen": _unique_bytes(frozen),
        "trained": sum(one.nbytes for one in trained.values()),
        "optimizer": sum(value.nbytes for value in states),
    }


def _unique_bytes(tensors: Iterable[Tensor]) -> int:
    storages = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())

"""What a run writes down while it goes: one JSON object per line, appended, so that a crash loses nothing."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from lorikeet.base.files import sync, write_file


def peak_rss_bytes() -> int:
    """The process's peak resident memory. VmHWM where there is /proc: getrusage's figure survives an exec."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_device_bytes(device: torch.device) -> int | None:
    """Peak allocated device memory, or None on the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


class Metrics:
    """metrics.jsonl. `keep` forgets what an interrupted run wrote after its last checkpoint."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, row: dict[str, Any]) -> None:
        """Write one row; numbers that JSON has no word for become null. A row that does not fit on the disk leaves no
        half of itself."""
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
        }
        line = (json.dumps(clean) + "\n").encode()
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            end = os.fstat(handle).st_size
            try:
                rest = line
                while rest:  # a disk that is about to be full takes a part, and says why with the next one
                    rest = rest[os.write(handle, rest) :]
            except OSError:
                os.ftruncate(handle, end)
                raise
        finally:
            os.close(handle)

    def rows(self) -> list[dict[str, Any]]:
        """All whole rows; a line that a crash cut short is not one."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_bytes().split(b"\n"):
            try:
                row = json.loads(line)
            except ValueError:  # no JSON, no UTF-8
                continue
            if isinstance(row, dict):
                found.append(row)
        return found

    def keep(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace the file by these rows."""
        write_file(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def sync(self) -> None:
        """Wait until the rows are on the disk."""
        if self.path.exists():
            sync(self.path)

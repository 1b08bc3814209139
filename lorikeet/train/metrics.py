"""What a run writes down while it goes: one JSON object per line, appended, so that a crash loses nothing."""

from __future__ import annotations

import json
import math
import resource
import sys
from pathlib import Path
from typing import Any

import torch


def peak_rss_bytes() -> int:
    """The process's peak resident memory. VmHWM where there is /proc: getrusage's figure survives an exec."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_device_bytes(device: torch.device) -> int | None:
    """Peak allocated device memory, or None on the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


class Metrics:
    """metrics.jsonl. `truncate(step)` forgets what an interrupted run wrote after its last checkpoint."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, row: dict[str, Any]) -> None:
        """Write one row; numbers that JSON has no word for become null."""
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
        }
        with self.path.open("a") as file:
            file.write(json.dumps(clean) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """All whole rows; a last line that a crash cut short is not one."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return found

    def truncate(self, step: int) -> None:
        """Keep the rows up to and with `step`."""
        kept = [row for row in self.rows() if row.get("step", 0) <= step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        temporary.replace(self.path)

"""What the system refuses (room on the disk, memory, a name) as one of our errors, whichever command met it."""

from __future__ import annotations

import errno
import sys

from lorikeet.base.errors import LorikeetError, OutOfMemory, OutputError
from lorikeet.base.files import disk_is_full


def as_ours(error: Exception) -> LorikeetError | None:
    """The error for people that `error` stands for; None where it says nothing that they could mend."""
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # whichever option it stands in
        name = str(error.filename)
        return LorikeetError("a name that is too long for a file", given=f"{name[:80]}... ({len(name)})")
    if disk_is_full(error):
        return OutputError("the disk is full", given=" ".join(str(error).split())[:300])
    if ended := _memory_ended(error):
        return OutOfMemory(
            "memory ended outside a training step",
            given=ended,
            try_="`lorikeet plan` shows what takes it; a smaller model, quant.kind=nf4, or other programs closed",
        )
    return None


def _memory_ended(error: Exception) -> str | None:
    if "torch" not in sys.modules:  # what knows its errors would import it
        return str(error) or type(error).__name__ if isinstance(error, MemoryError) else None
    from lorikeet.base.memory_errors import memory_ended

    return memory_ended(error)

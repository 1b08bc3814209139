"""How an error says that memory was not given: PyTorch, numpy, the system and CUDA's libraries each have a way."""

from __future__ import annotations

import errno
import re

import torch

_SAID = re.compile(
    r"can't allocate memory|cannot allocate memory|not enough memory|bad_alloc|out of memory|ALLOC_FAILED"
    r"|unable to mmap|could not create a memory|could not (create|execute) a primitive$",  # the last: oneDNN's
    re.IGNORECASE,
)

_PREFIX = re.compile(r"^\[enforce fail [^]]*\] [^.]*\. ")  # PyTorch's own place in its own code


def memory_ended(error: BaseException) -> str | None:
    """What an error says about memory that was not given, in a line; None for any other error."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    known |= isinstance(error, OSError) and error.errno == errno.ENOMEM
    if not known and not (isinstance(error, RuntimeError) and _SAID.search(str(error))):
        return None
    text = _PREFIX.sub("", " ".join(str(error).split()))
    return text.partition(" Error code")[0][:160] or type(error).__name__

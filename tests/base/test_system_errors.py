from __future__ import annotations

import errno

import pytest

from lorikeet.base.system_errors import as_ours


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 2, "OutputError: the disk is full\n  given    [Errno 28]"),
        (MemoryError("no room"), 1, "OutOfMemory: memory ended outside a training step\n  given    no room\n  try "),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 1, "OutOfMemory: "),
        (OSError(errno.ENAMETOOLONG, "?", "a" * 99), 2, "LorikeetError: a name that is too long for a file"),
    ],
)
def test_what_the_system_refuses_is_one_of_our_errors(error: Exception, code: int, said: str) -> None:
    found = as_ours(error)
    assert found is not None and found.exit_code == code and str(found).startswith(said)


def test_what_says_nothing_of_the_system_is_left_alone() -> None:
    assert as_ours(ValueError("no")) is None and as_ours(FileNotFoundError(errno.ENOENT, "no", "a")) is None

"""Optional packages, imported inside the function that needs them.

No availability flags and no `try: import` at the top of a module: the import happens where the need is, and a
missing package is answered with the line that installs it.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from lorikeet.base.errors import MissingExtra


def require(package: str, *, extra: str, needed_by: str) -> ModuleType:
    """Import `package`, or raise MissingExtra with the pip line of `extra`."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtra(
            f"{needed_by} needs the package '{package}', which is not installed",
            given=error,
            allowed=f"any version that the extra '{extra}' admits",
            try_=f"pip install 'lorikeet-llm[{extra}]'",
        ) from error

"""An adapter that training goes on from, as other systems name it: `adapter.path`.

There as here its folder says what it is, so the settings that say that are not read there either.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lorikeet.migrate._contract import Translation
from lorikeet.migrate._datasets import beside


def goes_on(made: Translation, key: str, said: Iterable[str]) -> bool:
    """Set `adapter.path` from `key`, if there is one; `said` are the keys that its folder answers instead."""
    content = made.content
    folders = content.words(key)
    if not folders:
        made.seen.add(key)
        return False
    folder = beside(folders[-1], content)
    made.set("adapter.path", folder, key)
    if len(folders) > 1:
        made.leave(
            "differs", key, "there all but the last are merged into the base before; here: lorikeet merge, first"
        )
    if not Path(folder).is_dir():
        made.leave("missing", key, f"there is no {folder} here", folder)
    for name in said:
        if content.has(name) and name not in made.seen:
            made.leave("not needed", name, "the adapter's folder says it, there too")
    return True

"""Which pages of the cache are whose: free ones, those of texts, and those that are kept for texts to come.

A full page is named by the hash of all tokens up to its end and of who computed them (the adapter). A text that begins
with the same tokens takes the page as its own beginning, computed already; several may have it at once. A page that no
text has is kept until its room is needed, and then those go first that nobody has asked for the longest.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from lorikeet.models.kv_cache import PAGE

Name = bytes


def names(first: bytes, tokens: Sequence[int]) -> list[Name]:
    """The names of a text's full pages; `first` says who computes them."""
    found, name = [], beginning(first)
    for start in range(0, len(tokens) - PAGE + 1, PAGE):
        name = following(name, tokens[start : start + PAGE])
        found.append(name)
    return found


def beginning(first: bytes) -> Name:
    """What the name of a text's first page follows."""
    return hashlib.sha256(first).digest()


def following(name: Name, tokens: Sequence[int]) -> Name:
    """The name of a page with these tokens, behind the one of `name`."""
    return hashlib.sha256(name + np.asarray(tokens, np.int64).tobytes()).digest()


class Pages:
    """`count` pages, numbered from `first` on."""

    def __init__(self, count: int, first: int = 1):
        self._free = list(range(first + count - 1, first - 1, -1))  # the lowest is taken first
        self._users = [0] * (first + count)
        self._of_name: dict[Name, int] = {}
        self._names: dict[int, Name] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()  # those with a name that no text has, the oldest first

    @property
    def available(self) -> int:
        """How many can be taken."""
        return len(self._free) + len(self._unused)

    def take(self) -> int:
        """A page whose content does not matter."""
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._unused.popitem(last=False)
            del self._of_name[self._names.pop(page)]
        self._users[page] = 1
        return page

    def find(self, names: Sequence[Name]) -> list[int]:
        """The pages of the longest beginning of `names` that is there; nobody has them yet."""
        found = []
        for name in names:
            if name not in self._of_name:
                break
            found.append(self._of_name[name])
        return found

    def unused(self, pages: Sequence[int]) -> int:
        """How many of them no text has: sharing one makes one fewer available."""
        return sum(page in self._unused for page in pages)

    def share(self, page: int) -> None:
        """One more text has this page."""
        self._users[page] += 1
        self._unused.pop(page, None)

    def leave(self, pages: Sequence[int]) -> None:
        """A text no longer has these. Its end goes before its beginning, which more texts begin with."""
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page] == 0 and page in self._names:
                self._unused[page] = None
            elif self._users[page] == 0:
                self._free.append(page)

    def name(self, page: int, name: Name) -> int:
        """The page is full now. Returns the one to have in its place: another that has the same name already."""
        there = self._of_name.get(name)
        if there is not None and there != page:
            self.share(there)
            self.leave([page])
            return there
        if self._users[page] and page not in self._names:
            self._of_name[name], self._names[page] = page, name
        return page

"""ModelScope, over its plain HTTPS interface: `modelscope:ORG/NAME[@REVISION]`. No client package is needed.

The list of files states sizes and sha256 sums, which are checked. Of a repository its folder is taken (safetensors,
settings, tokenizer), or its one GGUF file; never code. MODELSCOPE_DOMAIN is the client's own variable for another host.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from lorikeet.base.errors import DownloadError
from lorikeet.base.files import need_space
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.checkpoints.sources._fetch import Progress, fetch, is_private, read_url
from lorikeet.checkpoints.sources._shelf import PICKLES, TAKEN, finished, one_after_another, wanted, write_note

FORM = "modelscope:ORG/NAME[@REVISION]"


class Entry(NamedTuple):
    """One file of a repository. `sha256` is None where the list has none."""

    name: str
    size: int
    sha256: str | None


def parse(name: str, home: Path) -> Repository | None:
    """`modelscope:ORG/NAME[@REVISION]`."""
    if not name.startswith("modelscope:"):
        return None
    match = re.fullmatch(r"modelscope:([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w-][\w./-]*))?", name)
    if match is None:
        raise DownloadError("a source that cannot be read", given=name, allowed=FORM)
    return Repository(match[1], match[2] or "master", home)


class Repository:
    """A repository at a revision."""

    def __init__(self, name: str, revision: str, home: Path):
        self.name, self.revision = name, revision
        self.shelf = home / "modelscope" / name.replace("/", "--")
        self.target = self.shelf / revision.replace("/", "--")

    def here(self) -> Path | None:
        """The folder, if it is whole."""
        return finished(self.target)

    def fetch(self, *, allow_pickle: bool, progress: Progress) -> Path:
        """The folder, or the GGUF file in it."""
        entries = _choose(self._list(), self.name, self._url("FILE"), allow_pickle)
        total = sum(entry.size for entry in entries)
        there = sum(file.stat().st_size for file in self.target.iterdir()) if self.target.is_dir() else 0
        need_space(self.target, total - there, f"downloading modelscope:{self.name}")
        for entry, show in zip(entries, one_after_another(progress, [entry.size for entry in entries])):
            file = self.target / entry.name
            fetch(self._url(entry.name), file, sha256=entry.sha256, size=entry.size, progress=show)
        model = next((entry.name for entry in entries if entry.name.endswith(".gguf")), "")
        open_checkpoint(self.target / model, allow_pickle=allow_pickle)
        write_note(self.target, f"modelscope:{self.name}@{self.revision}", model, {})
        return self.target / model

    def _api(self) -> str:
        host = os.environ.get("MODELSCOPE_DOMAIN") or "www.modelscope.cn"
        scheme = "http" if is_private(f"http://{host}") else "https"
        return f"{scheme}://{host}/api/v1/models/{self.name}/repo"

    def _url(self, file: str) -> str:
        return f"{self._api()}?Revision={quote(self.revision, safe='')}&FilePath={quote(file, safe='')}"

    def _list(self) -> list[Entry]:
        """The files at the top of the repository. Raises DownloadError for an answer that is no list."""
        url = f"{self._api()}/files?Revision={quote(self.revision, safe='')}&Recursive=True"
        content = read_url(url, {"Accept": "application/json"})
        answer: Any = None
        try:
            answer = json.loads(content or b"")
            listed = [_entry(entry) for entry in answer["Data"]["Files"] if entry["Type"] != "tree"]
        except (ValueError, KeyError, TypeError) as error:
            message = answer.get("Message") if isinstance(answer, dict) else None
            raise DownloadError(
                f"modelscope:{self.name} cannot be listed",
                given=message or f"an answer that is no list of files: {error!r}",
                allowed=FORM,
                try_="check the name and the revision",
            ) from error
        return [entry for entry in listed if re.fullmatch(r"[^/\\.][^/\\]*", entry.name)]


def _entry(entry: dict[str, Any]) -> Entry:
    return Entry(str(entry["Path"]), int(entry["Size"]), entry.get("Sha256") or None)


def _choose(entries: list[Entry], name: str, url: str, allow_pickle: bool) -> list[Entry]:
    """What to take: a folder with safetensors, or one GGUF file; pickles only when allowed and needed."""

    def like(patterns: tuple[str, ...]) -> list[Entry]:
        names = wanted((entry.name for entry in entries), patterns)
        return [entry for entry in entries if entry.name in names]

    ggufs, pickles = like(("*.gguf",)), like(PICKLES)
    if like(("*.safetensors",)):
        return like(TAKEN)
    if len(ggufs) == 1:
        return ggufs
    if pickles and allow_pickle:
        return like((*TAKEN, *PICKLES))
    allowed = "*.safetensors with config.json, or one .gguf file"
    if ggufs:
        raise DownloadError(
            f"modelscope:{name} has {len(ggufs)} GGUF files",
            given=" ".join(entry.name for entry in ggufs),
            allowed=allowed,
            try_=f"one of them: https://www.modelscope.cn/models/{name}/resolve/master/{ggufs[0].name}",
        )
    raise DownloadError(
        f"modelscope:{name} holds no model that can be used",
        given=f"pickled weights: {' '.join(entry.name for entry in pickles[:4])}"
        if pickles
        else " ".join(entry.name for entry in entries[:12]) or "no files",
        allowed=allowed,
        try_="--allow-pickle (in a recipe model.allow_pickle=true), if you trust the source" if pickles else None,
    )

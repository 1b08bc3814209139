"""The Hugging Face hub, through its own client: `hf:ORG/NAME[@REVISION]`.

The client is optional (`lorikeet-llm[hf]`). It brings what one expects of it: HF_TOKEN, HF_ENDPOINT for mirrors, Xet.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lorikeet.base.errors import DownloadError
from lorikeet.base.extras import require
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.checkpoints.sources._fetch import Progress
from lorikeet.checkpoints.sources._shelf import PICKLES, TAKEN, check_sum, finished, wanted, write_note

FORM = "hf:ORG/NAME[@REVISION]"
SETTINGS = ["*.json", "*.jinja", "tokenizer.model", "*.tiktoken"]


def parse(name: str, home: Path) -> Hub | None:
    """`hf:ORG/NAME[@REVISION]`."""
    if not name.startswith("hf:"):
        return None
    match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name)
    if match is None:
        raise DownloadError("a source that cannot be read", given=name, allowed=FORM)
    return Hub(match[1], match[2] or "main", home)


class Hub:
    """A repository at a revision."""

    def __init__(self, name: str, revision: str, home: Path):
        self.name, self.revision = name, revision
        self.shelf = home / "hf" / name.replace("/", "--")
        self.target = self.shelf / revision.replace("/", "--")

    def here(self) -> Path | None:
        """The folder, if it is whole."""
        return finished(self.target)

    def fetch(self, *, allow_pickle: bool, progress: Progress) -> Path:
        """The folder. The hub's client shows its own progress."""
        hub: Any = require("huggingface_hub", extra="hf", needed_by=f"downloading hf:{self.name}")
        try:
            info = hub.HfApi().model_info(self.name, revision=self.revision, files_metadata=True)
            names = [sibling.rfilename for sibling in info.siblings]
            self._refuse_ggufs(names)
            pickles = PICKLES if allow_pickle and not wanted(names, ("*.safetensors",)) else ()
            files = wanted(names, (*TAKEN, *pickles))
            hub.snapshot_download(self.name, revision=info.sha, local_dir=self.target, allow_patterns=files)
        except DownloadError:
            raise
        except Exception as error:  # the hub's own errors, and those of whatever HTTP client it uses
            raise self._refusal(f"hf:{self.name}", error) from error
        for sibling in info.siblings:
            file = self.target / sibling.rfilename
            # only large files come with a sha256; the hub's client checks the sizes of the others
            if sibling.lfs is not None and file.is_file():
                check_sum(file, sibling.lfs.sha256)
        open_checkpoint(self.target, allow_pickle=allow_pickle)
        write_note(self.target, f"hf:{self.name}@{info.sha}", "", {})
        return self.target

    def settings(self, home: Path) -> Path:
        """A folder in `home` with config.json and the tokenizer, without weights; fetched at first use."""
        folder = home / "hf" / self.name.replace("/", "--") / self.revision.replace("/", "--")
        if (folder / "config.json").is_file():
            return folder
        hub: Any = require("huggingface_hub", extra="hf", needed_by=f"the settings of hf:{self.name}")
        try:
            hub.snapshot_download(self.name, revision=self.revision, local_dir=folder, allow_patterns=SETTINGS)
        except Exception as error:  # the hub's own errors, and those of whatever HTTP client it uses
            raise self._refusal(f"the settings of hf:{self.name}", error) from error
        return folder

    def _refusal(self, what: str, error: Exception) -> DownloadError:
        return DownloadError(
            f"{what} cannot be downloaded",
            given=f"revision {self.revision}: {error}",
            allowed=FORM,
            try_="check the name and the network; for a gated model, `hf auth login`",
        )

    def _refuse_ggufs(self, files: list[str]) -> None:
        """A repository of GGUF files alone has the same model several times over: a person has to say which."""
        ggufs = [file for file in files if file.endswith(".gguf")]
        if ggufs and not any(file.endswith((".safetensors", ".bin")) for file in files):
            raise DownloadError(
                f"hf:{self.name} has GGUF files, which are fetched one by one",
                given=" ".join(ggufs),
                allowed="a repository with *.safetensors, or the address of one .gguf file",
                try_=f"https://huggingface.co/{self.name}/resolve/{self.revision}/{ggufs[0]}",
            )

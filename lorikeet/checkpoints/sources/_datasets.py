"""A data set's repository on the Hugging Face hub: what is in it, and its files. The hub's own client does the work.

Which of the files are wanted is the data layer's matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorikeet.base.errors import DownloadError
from lorikeet.base.extras import require
from lorikeet.base.files import need_space
from lorikeet.base.log import note
from lorikeet.checkpoints.sources._shelf import check_sum


class Repository:
    """One data set at one commit: looked up once, so that nothing moves between the list and the files."""

    def __init__(self, name: str, revision: str | None):
        """Ask the hub. Raises MissingExtra without its client, DownloadError where there is no such data set."""
        self.name = name
        self._hub: Any = require("huggingface_hub", extra="hf", needed_by=f"downloading the data set hf:{name}")
        try:
            info = self._hub.HfApi().dataset_info(name, revision=revision, files_metadata=True)
        except Exception as error:  # the hub's own errors, and those of whatever HTTP client it uses
            raise _refusal(name, revision, error) from error
        self.commit: str = info.sha
        self.sizes: dict[str, int] = {one.rfilename: one.size or 0 for one in info.siblings}
        self._sha256 = {one.rfilename: one.lfs.sha256 for one in info.siblings if one.lfs is not None}
        card = getattr(info, "card_data", None) or {}
        self.card: Mapping[str, Any] = card if isinstance(card, Mapping) else card.to_dict()

    def fetch(self, names: Sequence[str], folder: Path) -> list[Path]:
        """Download these files into `folder`, under their names; those that have a sha256 are checked."""
        size = sum(self.sizes[name] for name in names)
        note(f"downloading hf:{self.name}: {len(names)} {'file' if len(names) == 1 else 'files'}, {size / 1e6:.1f} MB")
        need_space(folder, size, f"hf:{self.name}")
        for name in names:
            try:
                self._hub.hf_hub_download(self.name, name, repo_type="dataset", revision=self.commit, local_dir=folder)
            except Exception as error:
                raise _refusal(self.name, self.commit, error) from error
            if name in self._sha256:
                check_sum(folder / name, self._sha256[name])
        return [folder / name for name in names]


def _refusal(name: str, revision: str | None, error: Exception) -> DownloadError:
    return DownloadError(
        f"the data set hf:{name} cannot be downloaded",
        given=f"revision {revision or 'main'}: {error}",
        allowed="a data set of the hub, or the name of a file or folder that is here",
        try_="check the name and the network; for a gated data set, `hf auth login`",
    )

"""Weights & Biases. Without a key it writes its files into the run's folder, for `wandb sync` later; it never asks.

Online, a run that goes on is the same run there, and rows that the server has are left out. Offline there is nothing
to go on from: the new files hold the rows from before too, and the old ones are removed.
"""

from __future__ import annotations

import netrc
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from lorikeet.base.extras import require
from lorikeet.base.log import note
from lorikeet.train.trackers._contract import About, Row, Session, Tracker, scalars, step_of

_WAIT_SECONDS = 60.0  # for a server that does not answer, at the start


class Wandb(Tracker):
    """Weights & Biases. Figures and the recipe go there, and nothing of your data or model. Without a key
    (`wandb login`, or WANDB_API_KEY) it works offline."""

    kind: Literal["wandb"] = "wandb"
    project: str = Field("lorikeet", min_length=1, max_length=128, description="The project that the run belongs to.")
    entity: str | None = Field(None, min_length=1, description="The user or team; by default the key's own.")
    name: str | None = Field(None, min_length=1, description="The run's name there; by default its folder's name.")
    tags: list[str] = Field([], description="Tags of the run.")
    mode: Literal["auto", "online", "offline"] = Field(
        "auto", description="Whether it uses the network; auto: online where there is a key. WANDB_MODE goes before."
    )

    def check(self) -> None:
        _package()

    def start(self, about: About, past: Sequence[Row]) -> Session:
        return _Session(self, about, past)


def _package() -> Any:
    # it would ask at the terminal, or draw into it, where it finds one
    os.environ.setdefault("WANDB_SILENT", "true")
    return require("wandb", extra="wandb", needed_by="train.report_to: wandb")


class _Session:
    def __init__(self, options: Wandb, about: About, past: Sequence[Row]):
        wandb, mode = _package(), _mode(options)
        offline = mode != "online"
        # before the new ones are made, whose folder may have the same name: it is the second's
        for old in (about.folder / "wandb").glob(f"offline-run-*-{about.id}") if offline else ():
            shutil.rmtree(old, ignore_errors=True)
        self.run = wandb.init(
            project=options.project,
            entity=options.entity,
            name=options.name or about.name,
            id=about.id,
            tags=options.tags,
            config=dict(about.recipe),
            dir=str(about.folder),
            mode=mode,
            resume=None if offline else "allow",
            reinit="create_new",
            settings=_settings(wandb),
        )
        # online: the step that follows the last one the server has
        self.next_step = 0 if offline else int(self.run.step)
        for row in past:
            self.row(row)
        if offline and mode == "offline":
            note(f"wandb: offline; later: wandb sync {about.folder / 'wandb'}/offline-run-*-{about.id}")

    def row(self, row: Row) -> None:
        step = step_of(row)
        if step is not None and step >= self.next_step and (found := scalars(row)):
            self.run.log(found, step=step)

    def close(self, *, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


def _mode(options: Wandb) -> str:
    said = os.environ.get("WANDB_MODE", "")
    if said in ("online", "offline", "disabled"):
        return said
    if options.mode != "auto":
        return options.mode if options.mode == "offline" or _has_key() else "offline"
    return "online" if _has_key() else "offline"


def _has_key() -> bool:
    """Whether wandb would find a key without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].split("/")[0]
    try:
        return netrc.netrc(os.environ.get("NETRC") or str(Path.home() / ".netrc")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _settings(wandb: Any) -> Any:
    """Our figures and nothing else: no output of the terminal, no code, no git, no measurements of its own."""
    known = wandb.Settings.model_fields
    wanted: dict[str, Any] = {
        "console": "off",
        "silent": True,
        "quiet": True,
        "disable_git": True,
        "disable_code": True,
        "save_code": False,
        "disable_job_creation": True,
        "init_timeout": _WAIT_SECONDS,
        "x_disable_stats": True,
        "x_disable_meta": True,
        "x_disable_machine_info": True,
        "x_save_requirements": False,
    }
    return wandb.Settings(**{name: value for name, value in wanted.items() if name in known})

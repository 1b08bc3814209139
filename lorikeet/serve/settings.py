"""What a server is told when it starts: names, limits, who may ask, and what a request gets that leaves things out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

BASE = "base"  # the model without any adapter, whatever it is called


@dataclass(frozen=True)
class Settings:
    """`model` is the name of the model as it was opened; requests that name none mean it."""

    model: str
    base: Literal["same", "apart", "none"] = "same"  # what `base` means: it, it without its adapter, or nothing
    generate: Mapping[str, Any] = field(default_factory=dict)  # of requests that do not say
    systems: Mapping[str, str] = field(default_factory=dict)  # model -> the system prompt it was trained behind
    api_keys: tuple[str, ...] = ()
    users: tuple[str, ...] = ()  # "name:password", for basic auth
    origins: tuple[str, ...] = ()  # of web pages that may ask (CORS)
    hosts: tuple[str, ...] = ()  # names that a request may call this server by; () for any
    adapter_folders: tuple[Path, ...] = ()  # from where adapters may be loaded while it runs; () for not at all
    queue: int = 64  # choices that may wait for a row
    max_new_tokens: int | None = None  # of a reply; None for what the context leaves
    max_choices: int = 16  # replies to one request
    max_body_bytes: int = 4 << 20
    body_seconds: float = 30.0  # to send a request's body in
    header_seconds: float = 10.0  # to send its headers in
    max_connections: int = 1000
    drain_seconds: float = 30.0  # that replies may take when the server is asked to stop

    @property
    def locked(self) -> bool:
        """Whether a request has to say who it is from."""
        return bool(self.api_keys or self.users)

"""What the routes share: the worker, the settings, the names of models, and what was counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TypeVar

from lorikeet.data.templates._calls import CallForm, call_form
from lorikeet.infer.engine import Engine
from lorikeet.serve.errors import ApiError
from lorikeet.serve.metrics import Metrics
from lorikeet.serve.settings import BASE, Settings
from lorikeet.serve.worker import Worker

T = TypeVar("T")


class Service:
    """A model that answers over HTTP."""

    def __init__(self, worker: Worker, settings: Settings):
        self.worker, self.settings = worker, settings
        self.metrics = Metrics(worker)
        self.started = int(time.time())
        # one thread renders and encodes prompts, so that a long one holds nobody's stream up
        self._encoder = ThreadPoolExecutor(1, "encoder")

    async def prepare(self, what: Callable[[], T]) -> T:
        """The value of `what`, which renders and encodes, beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._encoder, what)

    def close(self) -> None:
        """End the threads."""
        self.worker.close()
        self._encoder.shutdown(wait=False, cancel_futures=True)

    @property
    def engine(self) -> Engine:
        """What renders prompts; its network belongs to the worker's thread."""
        return self.worker.batch.engine

    @cached_property
    def calls(self) -> CallForm | None:
        """How the model's template writes calls of tools."""
        return call_form(self.engine.template)

    @property
    def context(self) -> int:
        """Tokens of the longest prompt and reply together."""
        return self.engine.model.shape.max_position

    def models(self) -> list[str]:
        """The names that requests may use; the first is the model as it was opened."""
        return [self.settings.model, *([BASE] if self.settings.base == "apart" else []), *self.worker.batch.adapters]

    def adapter(self, model: str | None) -> tuple[str, str | None]:
        """(the name shown, the adapter that the engine is asked for) of a request's `model`. The engine's None is the
        model as it was opened, its `base` the same without an adapter."""
        name = model or self.settings.model
        if name == self.settings.model or (name == BASE and self.settings.base == "same"):
            return self.settings.model, None
        if name in self.models():
            return name, name
        raise ApiError(
            f"The model '{name[:200]}' does not exist; there are: {' '.join(self.models())}",
            status=404,
            param="model",
            code="model_not_found",
        )

"""The application: routes, what stands before them, and how errors look.

From the outside in: counting, CORS where origins are named, keys, the limits of bodies, the routes. Whatever is mounted
beside the routes stands behind the same guards.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from lorikeet.serve import adapters_api, errors, openai_api, simple_api
from lorikeet.serve.limits import BodyLimit, Guard
from lorikeet.serve.metrics import Counting
from lorikeet.serve.service import Service
from lorikeet.serve.settings import Settings
from lorikeet.serve.worker import Worker


def create_app(worker: Worker, settings: Settings) -> FastAPI:
    """The application over `worker`, which is started and stopped with it."""
    service = Service(worker, settings)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        service.close()

    app = FastAPI(title="Lorikeet", lifespan=life, docs_url=None, redoc_url=None)  # the usual pages need a network
    app.state.service = service
    errors.install(app)
    parts = [openai_api, simple_api, *([adapters_api] if settings.adapter_folders else [])]
    for part in parts:
        app.include_router(part.routes(service))
    app.add_middleware(BodyLimit, settings=settings)
    app.add_middleware(Guard, settings=settings)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's own client for browsers sends a dozen of its own
        )
    app.add_middleware(Counting, metrics=service.metrics)
    return app

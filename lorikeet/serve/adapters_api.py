"""Adapters that come and go while the server runs: only from folders that it was told of when it started."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from starlette.responses import Response

from lorikeet.base.log import note
from lorikeet.serve import documents
from lorikeet.serve.bodies import StrictRoute
from lorikeet.serve.errors import ApiError
from lorikeet.serve.openai_api import json_response
from lorikeet.serve.protocol import LoadAdapter, UnloadAdapter
from lorikeet.serve.service import Service
from lorikeet.serve.settings import BASE


def routes(service: Service) -> APIRouter:
    """The routes, with vLLM's names."""
    router = APIRouter(route_class=StrictRoute)

    @router.post("/v1/load_lora_adapter", **documents.of(documents.Done))
    async def load(body: LoadAdapter) -> Response:
        name, batch = body.lora_name, service.worker.batch
        if name in (BASE, service.settings.model, *batch.adapters):
            raise ApiError(f"the name '{name}' is taken", param="lora_name")
        folder = inside(body.lora_path, service.settings.adapter_folders)
        updates = await run_in_threadpool(batch.read_adapter, folder)  # replies go on meanwhile
        await service.worker.call(lambda: batch.take_adapter(name, updates))
        note(f"loaded the adapter {name} from {folder}")
        return json_response({"message": f"'{name}' is loaded"})

    @router.post("/v1/unload_lora_adapter", **documents.of(documents.Done))
    async def unload(body: UnloadAdapter) -> Response:
        name, batch = body.lora_name, service.worker.batch
        if name not in batch.adapters:
            raise ApiError(f"no adapter '{name}' is loaded", status=404, param="lora_name", code="model_not_found")
        await service.worker.call(lambda: batch.unload_adapter(name))
        return json_response({"message": f"'{name}' is unloaded"})

    return router


def inside(path: str, folders: tuple[Path, ...]) -> Path:
    """The adapter's folder that `path` names, below one of `folders`, however it is spelled and linked. A path that
    leads elsewhere is refused in the same words as one that leads nowhere: nobody learns what else is on the disk."""
    refusal = ApiError(
        "lora_path is not an adapter in a folder that this server may load from", param="lora_path", code="not_allowed"
    )
    if "\0" in path:
        raise refusal
    for folder in folders:
        try:
            found, top = (folder / path).resolve(), folder.resolve()
            parts = (found, *(file.resolve() for file in found.glob("*")))
            if all(part.is_relative_to(top) for part in parts) and (found / "adapter_config.json").is_file():
                return found
        except (OSError, RuntimeError, ValueError):  # a name too long, a loop of links
            continue
    raise refusal

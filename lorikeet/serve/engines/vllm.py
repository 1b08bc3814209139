"""vLLM: `vllm serve` on the base's folder, with the adapters as LoRA modules and the template as trained."""

from __future__ import annotations

from typing import ClassVar, Literal

from lorikeet.base.errors import RecipeError
from lorikeet.serve.engines._contract import Served, ServeEngine, Start

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes


class VLLM(ServeEngine):
    """Adapters answer by their names beside the base."""

    kind: ClassVar[str] = "vllm"
    takes: ClassVar[Literal["hf", "gguf"]] = "hf"
    install: ClassVar[str] = "pip install vllm"
    several_adapters: ClassVar[bool] = True

    def start(self, served: Served) -> Start:
        """See `ServeEngine.start`."""
        words = ["vllm", "serve", str(served.weights), "--served-model-name", served.name]
        words += ["--host", served.host, "--port", str(served.port)]
        words += ["--max-model-len", str(served.context), "--max-num-seqs", str(served.rows)]
        words += ["--generation-config", "vllm"]  # sampling is the request's, not what a file beside the model says
        if served.template is not None:
            words += ["--chat-template", str(served.template)]
        if served.adapters:
            if served.rank > RANKS[-1]:
                raise RecipeError(
                    "--engine vllm: the adapter's rank is too large for it",
                    given=served.rank,
                    allowed=f"up to {RANKS[-1]}",
                    try_="lorikeet merge, and serve the folder",
                )
            rank = next(rank for rank in RANKS if rank >= served.rank)
            words += ["--enable-lora", "--max-loras", str(len(served.adapters)), "--max-lora-rank", str(rank)]
            words += ["--lora-modules", *(f"{name}={folder}" for name, folder in served.adapters.items())]
        return Start(tuple(words), {"VLLM_API_KEY": served.key} if served.key else {})

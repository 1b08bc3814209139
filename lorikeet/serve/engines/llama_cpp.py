"""llama.cpp on one GGUF file: its own `llama-server` where that is installed, else llama-cpp-python's server.

llama-server answers several requests at once; llama-cpp-python's answers one after the other.
"""

from __future__ import annotations

import shutil
import sys
from typing import ClassVar, Literal

from lorikeet.serve.engines._contract import Served, ServeEngine, Start


class LlamaCpp(ServeEngine):
    """The chat template is the file's."""

    kind: ClassVar[str] = "llama.cpp"
    takes: ClassVar[Literal["hf", "gguf"]] = "gguf"
    install: ClassVar[str] = "pip install 'llama-cpp-python[server]', or llama.cpp's llama-server"

    def start(self, served: Served) -> Start:
        """See `ServeEngine.start`."""
        where = ["--host", served.host, "--port", str(served.port)]
        if shutil.which("llama-server"):
            words = ["llama-server", "-m", str(served.weights), "-a", served.name, *where, "--jinja"]
            words += ["-np", str(served.rows), "-c", str(served.context * served.rows)]
            return Start(tuple(words), {"LLAMA_API_KEY": served.key} if served.key else {})
        words = [sys.executable, "-m", "llama_cpp.server", "--model", str(served.weights)]
        words += ["--model_alias", served.name, *where, "--n_ctx", str(served.context)]
        return Start(tuple(words), {"API_KEY": served.key} if served.key else {})

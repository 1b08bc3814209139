"""The web page: a chat at `/` that speaks the same OpenAI API as every other client, and the run's report.

The files in `web/` go to the browser as they are. Nothing comes from another server and there is no build, so the page
works offline and starts with the server. It holds no secret: who may ask is decided where the page asks.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lorikeet.base.extras import require

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

WEB = Path(__file__).parent / "web"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
OPEN = ("/", "/page/")  # an address, and what begins with the other, may be read without a key
# A page that could be tricked still reaches nothing but its own server. Styles inside are for the report, which a
# browser shows under this policy where it was fetched with a key.
POLICY = (
    "default-src 'none'; script-src 'self'{scripts}; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}


def mount(app: FastAPI, report: Path | None, usual: Mapping[str, float] | None = None) -> None:
    """Add the page at `/`, its files below `/page/`, and `/report`: the file `report`, read at each request. `usual`:
    what a reply is sampled with where the page does not say.

    `/report` shows training data, so it wants whatever guard the API has; OPEN lists what needs none."""
    responses = require("starlette.responses", extra="serve", needed_by="the web page")
    files = {path.name: path.read_bytes() for path in WEB.iterdir() if path.suffix in TYPES}

    def send(name: str) -> Response:
        policy = {"Content-Security-Policy": POLICY.format(scripts=_scripts(report))} if name == "index.html" else {}
        sent: Response = responses.Response(
            files[name], media_type=TYPES[Path(name).suffix], headers={**HEADERS, **policy}
        )
        return sent

    def index(_: Request) -> Response:
        return send("index.html")

    def file(request: Request) -> Response:
        name = request.path_params["name"]  # one of the files above or nothing: no path is made of it
        return send(name) if name in files else missing("there is no such file")

    def about(_: Request) -> Response:
        sent: Response = responses.JSONResponse({"report": _there(report), "usual": dict(usual or {})}, headers=HEADERS)
        return sent

    def show_report(_: Request) -> Response:
        if report is None or not _there(report):
            return missing("there is no report; a run that was trained has one")
        sent: Response = responses.FileResponse(report, media_type=TYPES[".html"], headers=HEADERS)
        return sent

    def missing(what: str) -> Response:
        error = {"message": what, "type": "invalid_request_error", "param": None, "code": "not_found"}
        sent: Response = responses.JSONResponse({"error": error}, status_code=404, headers=HEADERS)
        return sent

    for path, endpoint in (("/", index), ("/page/about", about), ("/page/{name}", file), ("/report", show_report)):
        app.add_route(path, endpoint, methods=["GET"], include_in_schema=False)


def _there(report: Path | None) -> bool:
    return report is not None and report.is_file()


def _scripts(report: Path | None) -> str:
    """The hashes of the report's own scripts, as sources of the policy."""
    if report is None or not report.is_file():
        return ""
    found = re.findall(rb"<script>(.*?)</script>", report.read_bytes(), re.DOTALL)
    digests = [b64encode(hashlib.sha256(script).digest()).decode() for script in found]
    return "".join(f" 'sha256-{digest}'" for digest in dict.fromkeys(digests))

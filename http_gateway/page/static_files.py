"""Serve the files of the page, under a strict policy."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from chassis.errors import NotFound

_FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
# Nothing from elsewhere, nothing inline, no HTML made of strings. Images that a visitor chose have blob addresses.
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-cache",  # asked for again each time, so that all files are of one version
}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def _read(path: Path) -> _File:
    content = path.read_bytes()
    return _File(content, _TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


# By their path below /page/. Only these can be asked for, so no path leads elsewhere.
_FILES = {path.relative_to(_FOLDER).as_posix(): _read(path) for path in _FOLDER.rglob("*.*")}


async def _page(request: Request) -> Response:
    return _response(request, _FILES["index.html"])


async def _part(request: Request) -> Response:
    file = _FILES.get(request.path_params["name"])
    if file is None:
        raise NotFound("The page has no such file.", reason="NO_SUCH_PATH")
    return _response(request, file)


def _response(request: Request, file: _File) -> Response:
    headers = {**_HEADERS, "etag": file.etag}
    if request.headers.get("if-none-match") == file.etag:
        return Response(None, 304, headers)
    return Response(file.content, 200, headers, file.media_type)


routes: list[BaseRoute] = [Route("/", _page), Route("/page/{name:path}", _part)]

"""The page's server: a Starlette application.

Everything that the page loads comes from here, and its content security policy lets the browser
load nothing else. Uploads stay in memory (:mod:`context_encoder.demo.pictures`).
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
from PIL import Image
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from context_encoder.data.mask_images import InpaintError
from context_encoder.demo.filling import (
    Cancelled,
    FillRequest,
    Networks,
    available_methods,
    fill,
    hole_of,
)
from context_encoder.demo.pictures import Open, Pictures, encode_png, open_mask, open_picture
from context_encoder.inpainting.hole_filler import TEXTURE
from context_encoder.utils.options import explain
from context_encoder.utils.version import __version__

__all__ = ["Limits", "make_app"]

log = logging.getLogger(__name__)

_PAGE = Path(__file__).parent / "page"
_PHOTOS = Path(__file__).parents[1] / "data" / "photos"
#: Photographs of the package to try the page with.
_EXAMPLES = (
    "skimage_rocket.jpg",
    "lomiri_aitzgorri_by_aitzol_berasategi.jpg",
    "kde_cocktail.jpg",
    "palapeli_european-honey-bee.jpg",
)
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_MEBI = 1 << 20
#: A request other than an upload; strokes are text.
_MOST_TEXT = 16 * _MEBI
#: Progress is reported in steps of this.
_STEP = 0.01


@dataclass(frozen=True)
class Limits:
    """What the page accepts."""

    #: Size of an uploaded file, in MiB.
    upload: int = 200
    #: Images that are open at a time.
    pictures: int = 4


def make_app(
    networks: Networks, limits: Limits | None = None, hosts: tuple[str, ...] = ("*",)
) -> Starlette:
    """The application.

    Args:
        networks: the networks to choose from.
        limits: what is accepted.
        hosts: names of this machine under which the page may be called; others, which a foreign
            page may give to this machine's address, are refused.
    """
    server = _Server(networks, limits or Limits())
    one = "/api/pictures/{key}"
    routes = [
        Route("/", _file("index.html")),
        *(Route(f"/{name}", _file(name)) for name in ("page.css", "page.js", "icon.svg")),
        Route("/examples/{name}", server.example),
        Route("/api/about", server.about),
        Route("/api/pictures", server.open, methods=["POST"]),
        Route(one, server.forget, methods=["DELETE"]),
        Route(one + "/result.png", server.result),
        Route(one + "/mask.png", server.mask, methods=["POST"]),
        Route(one + "/masks", server.load_mask, methods=["POST"]),
        Route(one + "/masks/{number:int}", server.loaded_mask),
        Route(one + "/shown/{part}", server.shown),
        Route(one + "/fill", server.fill, methods=["POST"]),
    ]
    middleware = [
        Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
        Middleware(_SameOrigin),
    ]
    handlers: dict[Any, Any] = {
        HTTPException: _http_error,
        InpaintError: _sentence,
        ValidationError: _invalid,
        MemoryError: _no_memory,
        ClientDisconnect: _gone,
    }
    app = Starlette(
        routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=server.lifespan
    )
    app.state.server = server
    return app


class _SameOrigin:
    """Refuses requests that another site's page makes, and sets the headers of the page."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            await _error("requests from other sites are refused", 403)(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(k.lower().encode(), v.encode()) for k, v in _HEADERS.items()]
                names = {name for name, _ in added}
                kept = [pair for pair in message["headers"] if pair[0] not in names]
                message = {**message, "headers": [*kept, *added]}
            await send(message)

        await self._app(scope, receive, with_headers)


class _Server:
    def __init__(self, networks: Networks, limits: Limits) -> None:
        self._networks, self._limits = networks, limits
        self.pictures = Pictures(limits.pictures)
        self._one_at_a_time = threading.Lock()
        #: The work in progress ends when this is set.
        self.closing = threading.Event()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async def tidy() -> None:
            while True:
                await asyncio.sleep(60)
                self.pictures.forget_unused()

        task = asyncio.create_task(tidy())
        yield
        task.cancel()

    async def about(self, request: Request) -> Response:
        return JSONResponse(
            {
                "version": __version__,
                "networks": self._networks.labels(),
                "opencv": available_methods(),
                "texture": TEXTURE,
                "upload": self._limits.upload,
                "examples": [name for name in _EXAMPLES if (_PHOTOS / name).exists()],
            }
        )

    async def example(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _EXAMPLES:
            raise HTTPException(404)
        return FileResponse(_PHOTOS / name)

    async def open(self, request: Request) -> Response:
        data = await _body(request, self._limits.upload * _MEBI)
        name = _name(request, "the image")
        opened = await run_in_threadpool(open_picture, data, name)
        picture, display = opened.picture, opened.display
        await run_in_threadpool(opened.show_all)
        return JSONResponse(
            {
                "key": self.pictures.add(opened),
                "width": picture.width,
                "height": picture.height,
                "depth": 8 * picture.pixels.dtype.itemsize,
                "display": {
                    "width": display.width,
                    "height": display.height,
                    "scale": display.scale,
                },
                "notes": list(picture.notes),
            }
        )

    async def forget(self, request: Request) -> Response:
        self.pictures.forget(request.path_params["key"])
        return Response(status_code=204)

    async def shown(self, request: Request) -> Response:
        data = self._find(request).shown.get(request.path_params["part"])
        if data is None:
            raise HTTPException(404)
        return Response(data, media_type="image/jpeg")

    async def load_mask(self, request: Request) -> Response:
        opened = self._find(request)
        data = await _body(request, self._limits.upload * _MEBI)
        name = _name(request, "the mask")
        mask, remark = await run_in_threadpool(open_mask, data, name, opened.picture)
        if not mask.any():
            raise InpaintError(remark or "nothing to fill: the mask is nowhere white")
        return JSONResponse({"number": opened.add_mask(mask), "remark": remark})

    async def loaded_mask(self, request: Request) -> Response:
        opened = self._find(request)
        mask = opened.masks.get(request.path_params["number"])
        if mask is None:
            raise HTTPException(404)
        size = opened.display.width, opened.display.height

        def encode() -> bytes:
            image = Image.fromarray(mask)
            if image.size != size:
                image = image.convert("L").resize(size, Image.Resampling.BOX)
                image = image.point(lambda value: 255 * (value > 0)).convert("1")
            return _two_colors(image)

        return Response(await run_in_threadpool(encode), media_type="image/png")

    async def mask(self, request: Request) -> Response:
        opened = self._find(request)
        asked = FillRequest.model_validate_json(await _body(request, _MOST_TEXT))

        def encode() -> bytes:
            _, weights = hole_of(opened, asked)
            return encode_png(np.rint(weights * 255).astype(np.uint8))

        data = await run_in_threadpool(encode)
        return _download(data, f"{Path(opened.name).stem}-mask.png")

    async def result(self, request: Request) -> Response:
        opened = self._find(request)
        if opened.result is None:
            raise InpaintError("nothing is filled yet")
        data = await run_in_threadpool(encode_png, opened.result, opened.picture.info)
        return _download(data, f"{Path(opened.name).stem}-filled.png")

    async def fill(self, request: Request) -> Response:
        opened = self._find(request)
        asked = FillRequest.model_validate_json(await _body(request, _MOST_TEXT))
        return StreamingResponse(self._events(opened, asked), media_type="application/x-ndjson")

    async def _events(self, opened: Open, asked: FillRequest) -> AsyncIterator[str]:
        """One line of JSON per event; the last has the event ``end`` or ``error``."""
        loop, stop = asyncio.get_running_loop(), _Either(self.closing)
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        reported = 0.0

        def send(event: dict[str, Any]) -> None:
            nonlocal reported
            if event["event"] == "progress":
                if event["share"] < min(1.0, reported + _STEP):
                    return
                reported = event["share"]
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(queue.put_nowait, event)

        def work() -> None:
            last: dict[str, Any] = {"event": "end"}
            try:
                if not self._one_at_a_time.acquire(blocking=False):
                    send({"event": "waiting"})
                    while not self._one_at_a_time.acquire(timeout=0.2):
                        if stop.is_set():
                            raise Cancelled
                try:
                    fill(opened, asked, self._networks, send, stop)
                finally:
                    self._one_at_a_time.release()
            except Cancelled:
                last = {"event": "error", "text": "stopped"}
            except (InpaintError, ValueError) as error:
                last = {"event": "error", "text": str(error)}
            except MemoryError:
                last = {"event": "error", "text": _OUT_OF_MEMORY}
            except Exception:
                log.exception("an error while filling; please report it")
                last = {"event": "error", "text": _BUG}
            finally:
                send(last)

        # A daemon, so that OpenCV, which cannot be stopped, does not keep the process.
        threading.Thread(target=work, daemon=True).start()
        try:
            while True:
                event = await queue.get()
                yield json.dumps(event) + "\n"
                if event["event"] in ("end", "error"):
                    return
        finally:
            stop.set()

    def _find(self, request: Request) -> Open:
        found = self.pictures.find(request.path_params["key"])
        if found is None:
            raise HTTPException(404, "the image is no longer here; open it again")
        return found


class _Either(threading.Event):
    """An event that is also set when another one is."""

    def __init__(self, other: threading.Event) -> None:
        super().__init__()
        self._other = other

    def is_set(self) -> bool:
        return super().is_set() or self._other.is_set()


_OUT_OF_MEMORY = "the memory is full; use a smaller image"
_BUG = "an unexpected error, which the terminal shows; please report it"


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return FileResponse(_PAGE / name)

    return endpoint


async def _body(request: Request, most: int) -> bytes:
    """The body of a request; HTTPException 413 if it is larger than ``most`` bytes."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size <= most:
            parts.append(part)
        else:  # read on, since a browser gets no answer while it sends
            parts.clear()
    if size > most:
        raise HTTPException(
            413, f"the file is larger than the {most // _MEBI} MiB that this page accepts"
        )
    return b"".join(parts)


def _name(request: Request, otherwise: str) -> str:
    name = "".join(c for c in request.query_params.get("name", "") if c.isprintable())
    return Path(name).name[:200] or otherwise


def _download(data: bytes, name: str) -> Response:
    disposition = f"attachment; filename*=UTF-8''{quote(name, safe='')}"
    return Response(data, media_type="image/png", headers={"Content-Disposition": disposition})


def _two_colors(mask: Image.Image) -> bytes:
    """A small PNG: transparent where the mask is not set."""
    palette = mask.convert("L").point(lambda value: value > 0, "L")
    image = Image.fromarray(np.asarray(palette))
    image.putpalette([0, 0, 0, 255, 255, 255])
    data = io.BytesIO()
    image.save(data, "PNG", bits=1, transparency=0, compress_level=1)
    return data.getvalue()


def _error(text: str, status: int) -> Response:
    return JSONResponse({"error": text}, status_code=status)


async def _http_error(request: Request, error: HTTPException) -> Response:
    return _error(error.detail, error.status_code)


async def _sentence(request: Request, error: InpaintError) -> Response:
    return _error(str(error), 400)


async def _invalid(request: Request, error: ValidationError) -> Response:
    return _error("; ".join(explain(error)), 400)


async def _no_memory(request: Request, error: MemoryError) -> Response:
    return _error(_OUT_OF_MEMORY, 507)


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=400)

"""The web application: an image's bytes in, what models say of it out as JSON."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

from anyio import CapacityLimiter, WouldBlock, fail_after, to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dermalyze.taxonomy import DISCLAIMER

Node = dict[str, Any]
Judge = Callable[[io.BytesIO, Mapping[str, str]], Node]
"""(a file's bytes, what is known of the image besides) -> what is said of it.

Has the key "error" where nothing can be said.
"""


def application(
    judge: Judge, *, about: Node, most_bytes: int, most_waiting: int, most_seconds: float
) -> Starlette:
    """Return an application with three addresses. Every answer is JSON and holds the disclaimer.

    - GET /: which models answer, and in which way.
    - GET /health: that they do.
    - POST /predict: the body is the file; the query tells age, sex and localization where they are
      known. Answers 200 with what is said of the image; 422 with "error" where it cannot be used,
      413 where it is too large, 415 for a form, 408 where it does not arrive in time, 503 while
      too many wait. No file of this machine can be named.

    Args:
        judge: called in a thread, for one image at a time: the models use all cores as it is.
        about: plain, what the first address tells.
        most_bytes: of an image's file.
        most_waiting: images that are held at once, arriving or waiting for the models.
        most_seconds: for an image's file to arrive.
    """
    one_at_a_time, held_at_once = CapacityLimiter(1), CapacityLimiter(most_waiting)

    async def tell(request: Request) -> Response:
        return _answer(about)

    async def health(request: Request) -> Response:
        return _answer({"status": "ok"})

    async def predict(request: Request) -> Response:
        try:
            held_at_once.acquire_on_behalf_of_nowait(request)
        except WouldBlock:
            raise HTTPException(
                503, f"{most_waiting} images are arriving or waiting already. Send it again later."
            ) from None
        try:
            with fail_after(most_seconds):
                content = await _body(request, most_bytes)
            async with one_at_a_time:
                if await request.is_disconnected():
                    raise HTTPException(400, "the sender went away before it was answered")
                known = dict(request.query_params)
                said = await to_thread.run_sync(judge, io.BytesIO(content), known)
        except TimeoutError:
            raise HTTPException(
                408, f"the file did not arrive within {most_seconds:g} seconds"
            ) from None
        finally:
            held_at_once.release_on_behalf_of(request)
        return _answer(said, status=422 if "error" in said else 200)

    async def refused(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            said, headers = {"error": error.detail}, error.headers
            return _answer(said, status=error.status_code, headers=headers)
        return _answer({"error": "a bug; the server's log has its trace"}, status=500)

    app = Starlette(
        routes=[
            Route("/", tell),
            Route("/health", health),
            Route("/predict", predict, methods=["POST"]),
        ],
        exception_handlers={HTTPException: refused, Exception: refused},
    )
    app.router.redirect_slashes = False  # a redirection would have no words
    return app


async def _body(request: Request, most_bytes: int) -> bytes:
    """Return what was sent, without holding more of it than is allowed.

    Raises:
        HTTPException: 415, a form; 413, too much; 400, nothing, or a sender that went away.
    """
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(
            415,
            "a form was sent. Make the file itself the body: curl --data-binary @lesion.jpg "
            f"{request.url}",
        )
    content = bytearray()
    try:
        async for chunk in request.stream():
            content += chunk
            if len(content) > most_bytes:
                raise HTTPException(
                    413,
                    f"the file has more than {most_bytes} bytes. Send a smaller one, or start the "
                    "server with a larger most_megabytes.",
                )
    except ClientDisconnect:
        raise HTTPException(400, "the sender went away before all was sent") from None
    if not content:
        raise HTTPException(
            400,
            "no image was sent. Make its file the body: curl --data-binary @lesion.jpg "
            f"{request.url}",
        )
    return bytes(content)


def _answer(said: Node, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({**said, "disclaimer": DISCLAIMER}, status_code=status, headers=headers)

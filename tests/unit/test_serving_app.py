"""The web application by itself: who is kept waiting, who is refused, and in which words."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette

from dermalyze.serving.app import application
from dermalyze.taxonomy import DISCLAIMER

Node = dict[str, Any]
Receive = Callable[[], Awaitable[Node]]


def echo(file: io.BytesIO, known: Mapping[str, str]) -> Node:
    return {"got": file.read().decode(), **known}


def app(judge: Callable[..., Node] = echo, **changed: Any) -> Starlette:
    limits: Node = {"most_bytes": 100, "most_waiting": 2, "most_seconds": 5.0}
    return application(judge, about={"classes": {}}, **limits | changed)


def sent(*chunks: bytes) -> Receive:
    """Return a sender of these, who then waits for the answer."""
    messages = [{"type": "http.request", "body": c, "more_body": True} for c in chunks[:-1]]
    messages.append({"type": "http.request", "body": chunks[-1], "more_body": False})

    async def receive() -> Node:
        return messages.pop(0) if messages else await anyio.sleep_forever()

    return receive


async def asked(
    app: Starlette,
    receive: Receive | None = None,
    *,
    path: str = "/predict",
    method: str = "POST",
    query: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> tuple[int, Node, dict[str, str]]:
    """Return status, JSON and headers of an answer."""
    answer: list[Node] = []

    async def send(message: Node) -> None:
        answer.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query,
        "headers": [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()],
        "server": ("testserver", 80),
        "scheme": "http",
    }
    await app(scope, receive or sent(b"image"), send)
    start, *bodies = answer
    said = json.loads(b"".join(body.get("body", b"") for body in bodies))
    assert said.pop("disclaimer") == DISCLAIMER
    return start["status"], said, {k.decode(): v.decode() for k, v in start["headers"]}


def test_an_image_in_pieces_is_judged_with_what_is_known() -> None:
    status, said, _ = anyio.run(lambda: asked(app(), sent(b"im", b"age"), query=b"age=45"))
    assert (status, said) == (200, {"got": "image", "age": "45"})


def test_one_that_does_not_arrive_is_given_up() -> None:
    async def stalled() -> Node:
        return await anyio.sleep_forever()

    async def run() -> list[int]:
        slow = app(most_seconds=0.05, most_waiting=1)
        first, *_ = await asked(slow, stalled)
        second, *_ = await asked(slow)  # its place is free again
        return [first, second]

    assert anyio.run(run) == [408, 200]


def test_more_than_may_wait_are_refused_and_those_that_wait_are_answered() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def judge(file: io.BytesIO, known: Mapping[str, str]) -> Node:
        begun.set()
        go_on.wait(30)
        return echo(file, known)

    async def run() -> list[int]:
        busy, statuses = app(judge), []

        async def ask() -> None:
            statuses.append((await asked(busy))[0])

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            group.start_soon(ask)
            await anyio.to_thread.run_sync(begun.wait)
            await anyio.sleep(0.05)  # the second has arrived as well
            status, said, _ = await asked(busy)
            assert (status, said["error"][:36]) == (503, "2 images are arriving or waiting alr")
            go_on.set()
        assert (await asked(busy))[0] == 200
        return statuses

    assert anyio.run(run) == [200, 200]


def test_nothing_is_judged_for_senders_that_went_away() -> None:
    judged: list[str] = []

    def judge(file: io.BytesIO, known: Mapping[str, str]) -> Node:
        judged.append(file.read().decode())
        return {}

    def gone_after(body: bytes) -> Receive:
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Node:
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        return receive

    status, said, _ = anyio.run(lambda: asked(app(judge), gone_after(b"image")))
    assert (status, judged) == (400, [])
    assert "went away" in said["error"]


@pytest.mark.parametrize(
    ("request_of", "status", "why"),
    [
        ({"path": "/predict/"}, 404, "Not Found"),
        ({"method": "DELETE"}, 405, "Method Not Allowed"),
        ({"headers": {"Content-Type": "Multipart/Form-Data; boundary=x"}}, 415, "a form was sent"),
        ({"receive": sent(b"")}, 400, "no image was sent"),
        ({"receive": sent(b"a" * 60, b"b" * 60)}, 413, "more than 100 bytes"),
    ],
)
def test_refusals_are_json_with_their_headers(request_of: Node, status: int, why: str) -> None:
    found, said, headers = anyio.run(lambda: asked(app(), **request_of))
    assert (found, headers["content-type"]) == (status, "application/json")
    assert why in said["error"]
    assert ("allow" in headers) is (status == 405)

"""The gate before the server: what it refuses, whose turn it is, and when a client has gone."""

from __future__ import annotations

import asyncio
import hmac
import json
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

_LARGEST = 1 << 20
_WRITES = ("/v1/completions", "/v1/chat/completions", "/v1/responses")
_TELLS = ("/v1/models", "/health")
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
# What one answer to one prompt does not have; the values that ask for nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "logprobs": (False, 0), "presence_penalty": (0,),
    "generation_config": (),
}  # fmt: skip


@dataclass
class Limits:
    """What a server takes.

    Attributes:
        waiting: requests that wait for their turn at most; one more gets status 429.
        patience: seconds that a request waits before it gets status 503.
        body: seconds within which a request must have come, else status 408.
        token: what requests must bring as ``Authorization: Bearer …``; None asks for nothing.
    """

    waiting: int = 32
    patience: float = 60.0
    body: float = 10.0
    token: str | None = None


@dataclass
class Asked:
    """A request that runs: what it wants, whether its client has gone, and whether its generation runs."""

    body: dict[str, Any]
    gone: threading.Event = field(default_factory=threading.Event)
    runs: bool = False


asked_now: ContextVar[Asked] = ContextVar("asked")


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Gate:
    """An ASGI application in front of another: refuses what it must not see, one request at a time to what it may.

    A request is read whole before its turn, so a slow client delays nobody. A client that leaves stops its generation.
    """

    def __init__(self, inner: Any, limits: Limits, name: str) -> None:
        self.inner, self.limits, self.name = inner, limits, name
        self.turn = asyncio.Semaphore(1)
        self.waiting = 0
        self.running: Asked | None = None
        self.closed = False

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        begun = False

        async def sending(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._answer(scope, receive, sending)
        except _Refused as refused:
            await _reply(send, refused.status, str(refused))
        except asyncio.CancelledError:
            if not self.closed:
                raise
            if not begun:
                await _reply(send, 503, "this server is shutting down")

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        self._admit(scope)
        if scope["path"] in _TELLS:
            await self.inner(scope, receive, send)
            return
        try:
            whole = await asyncio.wait_for(_body(receive), self.limits.body)
        except TimeoutError:
            raise _Refused(408, f"the request did not arrive within {self.limits.body:g} s") from None
        if whole is None:
            return
        asked = Asked(_checked(whole))
        if self.turn.locked() and self.waiting >= self.limits.waiting:
            raise _Refused(429, f"{self.waiting} requests are waiting: try again later")
        self.waiting += 1
        try:
            await asyncio.wait_for(self.turn.acquire(), self.limits.patience)
        except TimeoutError:
            raise _Refused(503, f"no turn within {self.limits.patience:g} s: try again later") from None
        finally:
            self.waiting -= 1
        self.running = asked
        try:
            if self.closed:
                raise _Refused(503, "this server is shutting down")
            await self._run(scope, whole, asked, receive, send)
        finally:
            asked.gone.set()
            try:
                while asked.runs:
                    await asyncio.sleep(0.01)
            finally:
                self.turn.release()

    def close(self) -> None:
        """End the request that runs, and refuse those that wait."""
        self.closed = True
        if self.running is not None:
            self.running.gone.set()

    def _admit(self, scope: Any) -> None:
        given = dict(scope["headers"]).get(b"authorization", b"")
        wanted = self.limits.token
        if wanted is not None and not hmac.compare_digest(given, f"Bearer {wanted}".encode()):
            raise _Refused(401, "this server asks for its token: Authorization: Bearer …")
        if scope["path"] not in (*_WRITES, *_TELLS):
            raise _Refused(404, f"this server has the model {self.name!r} only, at {', '.join((*_WRITES, *_TELLS))}")
        if scope["path"] in _WRITES and scope["method"] != "POST":
            raise _Refused(405, f"{scope['path']} takes POST")

    async def _run(self, scope: Any, whole: bytes, asked: Asked, receive: Any, send: Any) -> None:
        """Let the application answer, and watch whether the client is still there."""
        left = asyncio.Event()
        parts = [{"type": "http.request", "body": whole, "more_body": False}]

        async def replay() -> Any:
            if parts:
                return parts.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            asked.gone.set()
            left.set()

        asked_now.set(asked)
        watcher = asyncio.create_task(watch())
        try:
            await self.inner(scope, replay, send)
        finally:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher


async def _body(receive: Any) -> bytes | None:
    """Return the body of a request, None where its client has gone.

    Raises:
        _Refused: it is too large.
    """
    whole = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        whole += message.get("body", b"")
        if len(whole) > _LARGEST:
            raise _Refused(413, f"the request is larger than {_LARGEST >> 20} MiB")
        if not message.get("more_body"):
            return whole


def _checked(whole: bytes) -> dict[str, Any]:
    """Return what a request says.

    Raises:
        _Refused: no JSON object, or a value that cannot be honoured.
    """
    try:
        body = json.loads(whole)
    # RecursionError: brackets in brackets in brackets.
    except (ValueError, RecursionError) as error:
        raise _Refused(400, f"the request is not JSON: {type(error).__name__}") from None
    if not isinstance(body, dict):
        raise _Refused(400, f"the request is a JSON {type(body).__name__}; expected an object")
    for name, harmless in _REFUSED.items():
        if body.get(name) is not None and body[name] not in harmless:
            raise _Refused(400, f"{name} is {str(body[name])[:40]!r}, which this server cannot do: leave it out")
    for name, low, high in (("temperature", 0, 2), ("top_p", 0, 1)):
        value = body.get(name)
        sound = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        if value is not None and not (sound and (value or name == "temperature")):
            raise _Refused(400, f"{name} is {str(value)[:40]!r}; expected a number from {low} to {high}")
    for name in LENGTHS:
        value = body.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise _Refused(400, f"{name} is {str(value)[:40]!r}; expected a whole number of at least 1")
    return body


async def _reply(send: Any, status: int, message: str) -> None:
    kind = "invalid_request_error" if status < 500 else "server_error"
    text = json.dumps({"error": {"message": message, "type": kind}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(text)).encode())]
    if status in (408, 413):
        # The rest of the request is not read.
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})

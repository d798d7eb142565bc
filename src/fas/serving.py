"""transformers' server around one model that is loaded already, behind a gate that keeps its limits."""

from __future__ import annotations

import asyncio
import hmac
import json
import socket
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fas.errors import FASError, MissingExtraError
from fas.loading import Loaded

if TYPE_CHECKING:
    from uvicorn import Server


_LARGEST = 1 << 20
_WRITES = ("/v1/completions", "/v1/chat/completions", "/v1/responses")
_TELLS = ("/v1/models", "/health")
_LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
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
class _Asked:
    """A request that runs: what it wants, whether its client has gone, and whether its generation runs."""

    body: dict[str, Any]
    gone: threading.Event = field(default_factory=threading.Event)
    runs: bool = False


_asked: ContextVar[_Asked] = ContextVar("asked")


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Gate:
    """An ASGI application in front of another: refuses what it must not see, one request at a time to what it may.

    A request is read whole before it takes its turn, so that a slow client holds up nobody. Where a client goes away,
    its generation stops at the next token.

    Args:
        inner: the application.
        limits: see there.
        name: of the model, for messages.
    """

    def __init__(self, inner: Any, limits: Limits, name: str) -> None:
        self.inner, self.limits, self.name = inner, limits, name
        self.turn = asyncio.Semaphore(1)
        self.waiting = 0
        self.running: _Asked | None = None
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
                await _reply(send, 503, "this server is ending")

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        self._admit(scope)
        if scope["path"] in _TELLS:
            await self.inner(scope, receive, send)
            return
        try:
            whole = await asyncio.wait_for(_body(receive), self.limits.body)
        except TimeoutError:
            raise _Refused(408, f"the request has not come within {self.limits.body:g} s") from None
        if whole is None:
            return
        asked = _Asked(_checked(whole))
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
                raise _Refused(503, "this server is ending")
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

    async def _run(self, scope: Any, whole: bytes, asked: _Asked, receive: Any, send: Any) -> None:
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

        _asked.set(asked)
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
        raise _Refused(400, f"the request is no JSON: {type(error).__name__}") from None
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
    for name in _LENGTHS:
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


def context_of(loaded: Loaded) -> int | None:
    """Return how many tokens a model can see, prompt and answer; None where nothing says so."""
    stated = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    longest = getattr(loaded.tokenizer, "model_max_length", None)
    known = [size for size in (stated, longest) if isinstance(size, int) and 0 < size < 1 << 30]
    return min(known, default=None)


def server(loaded: Loaded, name: str, limits: Limits | None = None) -> Server:
    """Return an HTTP server that answers with one model, one request after the other.

    Args:
        loaded: a converted model that writes text, with its tokenizer.
        name: of the model in requests.
        limits: what it takes.

    Raises:
        FASError: a model that writes no text.
        MissingExtraError: the packages of extra ``serve`` are not there.
    """
    try:
        import fastapi
        import openai  # noqa: F401
        import uvicorn
        from tokenizers.decoders import DecodeStream
        from transformers import StoppingCriteria, StoppingCriteriaList
        from transformers.cli.serving.chat_completion import ChatCompletionHandler
        from transformers.cli.serving.completion import CompletionHandler
        from transformers.cli.serving.model_manager import ModelManager
        from transformers.cli.serving.response import ResponseHandler
        from transformers.cli.serving.server import build_server
        from transformers.cli.serving.systemone import SystemOneHandler
        from transformers.cli.serving.transcription import TranscriptionHandler
        from transformers.cli.serving.utils import GenerateManager, GenerationState
    except ImportError as error:
        raise MissingExtraError(f"serving needs {error.name}: pip install 'fas[serve]'") from None
    if not loaded.model.can_generate() or loaded.model.config.is_encoder_decoder:
        raise FASError(f"{loaded.name} is a {type(loaded.model).__name__}, which continues no text: nothing to serve")
    tokenizer = loaded.need_tokenizer()

    class OneModel(ModelManager):
        """Knows the loaded model and no other: transformers' own would load whatever a request names."""

        def __init__(self) -> None:
            super().__init__(device=str(loaded.model.device), model_timeout=-1)
            self.force_model = name

        def process_model_name(self, model_id: str) -> str:
            # Without transformers' mark of a revision: the name in an answer is one for the next request.
            return model_id

        def load_model_and_processor(self, *_: Any, **__: Any) -> tuple[Any, Any]:
            return loaded.model, tokenizer

        def get_gen_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:
            return [{"id": name, "object": "model", "created": 0, "owned_by": "fas"}]

    class Gone(StoppingCriteria):
        """Ends a generation whose client has gone."""

        def __init__(self, event: threading.Event) -> None:
            self.event = event

        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            return input_ids.new_full((len(input_ids),), self.event.is_set(), dtype=bool)

    context = context_of(loaded)

    class WithinLimits(GenerateManager):
        """Generates as far as the context goes and the client stays."""

        def generate_streaming(self, model: Any, processor: Any, inputs: Any, gen_config: Any, **named: Any) -> Any:
            asked = self.bounded(inputs, gen_config)
            queue, streamer = super().generate_streaming(model, processor, self.watched(inputs), gen_config, **named)
            if "prompt" in asked.body:
                prompt = inputs["input_ids"][0].tolist()
                streamer._decode_stream = DecodeStream(prompt, skip_special_tokens=True)
            return queue, streamer

        async def generate_non_streaming(
            self, model: Any, processor: Any, inputs: Any, gen_config: Any, **named: Any
        ) -> Any:
            asked = self.bounded(inputs, gen_config)
            watched = self.watched(inputs)
            text, length, ids = await super().generate_non_streaming(model, processor, watched, gen_config, **named)
            if "prompt" in asked.body:
                # An answer by itself would lose the space that it begins with.
                before = processor.decode(inputs["input_ids"][0], skip_special_tokens=True)
                whole = processor.decode([*inputs["input_ids"][0], *ids], skip_special_tokens=True)
                text = whole[len(before) :] if whole.startswith(before) else text
            return text, length, ids

        def submit(self, function: Any, *args: Any, **named: Any) -> Any:
            asked = _asked.get()

            def run() -> Any:
                try:
                    return function(*args, **named)
                finally:
                    asked.runs = False

            asked.runs = True
            return super().submit(run)

        def async_submit(self, function: Any, *args: Any, **named: Any) -> Any:
            # A request that is cancelled does not cancel what the thread will set.
            return asyncio.shield(asyncio.wrap_future(self.submit(function, *args, **named)))

        def watched(self, inputs: Any) -> dict[str, Any]:
            return {**inputs, "stopping_criteria": StoppingCriteriaList([Gone(_asked.get().gone)])}

        def bounded(self, inputs: Any, config: Any) -> _Asked:
            asked, length = _asked.get(), inputs["input_ids"].shape[-1]
            wanted = next((asked.body[key] for key in _LENGTHS if asked.body.get(key) is not None), None)
            if context is not None and length + (wanted or 1) > context:
                raise ValueError(
                    f"the prompt has {length} tokens and {wanted or 'at least 1'} are asked for, but {name!r} sees "
                    f"{context} in all: shorten the prompt, or ask for fewer"
                )
            if context is not None:
                config.max_new_tokens = min(config.max_new_tokens, context - length)
            if asked.body.get("temperature"):
                config.do_sample = True
            return asked

    class State(GenerationState):
        """Hands out the one manager."""

        def get_manager(self, *_: Any, **__: Any) -> Any:
            return one

        def use_continuous_batching(self, *_: Any, **__: Any) -> bool:
            return False

    manager, state, one = OneModel(), State(), WithinLimits()
    application = build_server(
        manager,
        ChatCompletionHandler(manager, state, chat_template_kwargs={}),
        completion_handler=CompletionHandler(manager, state),
        response_handler=ResponseHandler(manager, state, chat_template_kwargs={}),
        transcription_handler=TranscriptionHandler(manager, state),
        systemone_handler=SystemOneHandler(manager, state, chat_template_kwargs={}),
        generation_state=state,
    )

    async def refuse(_: Any, error: Exception) -> Any:
        return fastapi.responses.JSONResponse({"error": {"message": str(error), "type": "invalid_request_error"}}, 400)

    # What transformers cannot do with a request (a chat without a template) is not the server's fault.
    application.add_exception_handler(ValueError, refuse)
    gate = Gate(application, limits or Limits(), name)

    class Ending(uvicorn.Server):
        """Ends requests where it ends itself."""

        async def shutdown(self, sockets: Any = None) -> None:
            gate.close()
            await super().shutdown(sockets)

    return Ending(uvicorn.Config(gate, log_level="warning", timeout_graceful_shutdown=1))


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens, so that a port in use is told before anything else happens.

    Raises:
        OSError: the address is taken, or not this machine's.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen()
    except OSError as error:
        opened.close()
        raise OSError(error.errno, error.strerror, f"{host}:{port}") from None
    return opened

"""transformers' server around one model that is loaded already, behind a gate that keeps its limits."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fas.errors import FASError, MissingExtraError
from fas.loading import Loaded
from fas.serving.gate import LENGTHS, Asked, Gate, Limits, asked_now

if TYPE_CHECKING:
    from uvicorn import Server


def context_of(loaded: Loaded) -> int | None:
    """Return how many tokens a model can see, prompt and answer; None where nothing says so."""
    stated = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    longest = getattr(loaded.tokenizer, "model_max_length", None)
    known = [size for size in (stated, longest) if isinstance(size, int) and 0 < size < 1 << 30]
    return min(known, default=None)


def server(loaded: Loaded, name: str, limits: Limits | None = None, ready: Callable[[], None] = lambda: None) -> Server:
    """Return an HTTP server that answers with one model, one request after the other.

    Args:
        loaded: a converted model that writes text, with its tokenizer.
        name: of the model in requests.
        limits: what it takes.
        ready: called as soon as it answers, and Ctrl-C ends it cleanly.

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
        raise FASError(
            f"{loaded.name} is a {type(loaded.model).__name__}, which does not generate text: nothing to serve"
        )
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
            asked = asked_now.get()

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
            return {**inputs, "stopping_criteria": StoppingCriteriaList([Gone(asked_now.get().gone)])}

        def bounded(self, inputs: Any, config: Any) -> Asked:
            asked, length = asked_now.get(), inputs["input_ids"].shape[-1]
            wanted = next((asked.body[key] for key in LENGTHS if asked.body.get(key) is not None), None)
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
        """Says when it is ready, and ends requests where it ends itself."""

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            ready()

        async def shutdown(self, sockets: Any = None) -> None:
            gate.close()
            await super().shutdown(sockets)

    return Ending(uvicorn.Config(gate, log_level="warning", timeout_graceful_shutdown=5))


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

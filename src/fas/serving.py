"""transformers' server around one model that is loaded already."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from fas.errors import FASError, MissingExtraError
from fas.loading import Loaded

if TYPE_CHECKING:
    from uvicorn import Server


def server(loaded: Loaded, name: str) -> Server:
    """Return an HTTP server that answers with one model.

    Args:
        loaded: a converted model that writes text, with its tokenizer.
        name: of the model in requests.

    Raises:
        FASError: a model that writes no text.
        MissingExtraError: the packages of extra ``serve`` are not there.
    """
    try:
        import fastapi
        import openai  # noqa: F401
        import uvicorn
        from transformers.cli.serving.chat_completion import ChatCompletionHandler
        from transformers.cli.serving.completion import CompletionHandler
        from transformers.cli.serving.model_manager import ModelManager
        from transformers.cli.serving.response import ResponseHandler
        from transformers.cli.serving.server import build_server
        from transformers.cli.serving.systemone import SystemOneHandler
        from transformers.cli.serving.transcription import TranscriptionHandler
        from transformers.cli.serving.utils import GenerationState
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

        def load_model_and_processor(self, model_id_and_revision: str, **_: Any) -> tuple[Any, Any]:
            if model_id_and_revision != self.process_model_name(name):
                raise fastapi.HTTPException(404, f"this server has the model {name!r} only")
            return loaded.model, tokenizer

        def get_gen_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:
            return [{"id": name, "object": "model", "created": 0, "owned_by": "fas"}]

    manager, state = OneModel(), GenerationState()
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
    return uvicorn.Server(uvicorn.Config(application, log_level="warning"))


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

"""``fas serve``: a converted language model behind the OpenAI interface, by transformers' own server."""

from __future__ import annotations

import gc
import ipaddress
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from fas.cli.program.options import Device, Model, OwnSchedule, OwnTimesteps
from fas.cli.program.output import Output


def serve(
    context: typer.Context,
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 admits other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.", min=0, max=65535)] = 8000,
    name: Annotated[
        str | None, typer.Option(help="The model's name in requests; the last part of MODEL if not given.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(help="Require `Authorization: Bearer TOKEN` of every request.", envvar="FAS_SERVE_TOKEN"),
    ] = None,
    waiting: Annotated[int, typer.Option(help="Most requests that wait; one more gets status 429.", min=0)] = 32,
    patience: Annotated[float, typer.Option(help="Seconds that a request waits before status 503.", min=0)] = 60.0,
    timesteps: OwnTimesteps = None,
    schedule: OwnSchedule = None,
    device: Device = "cpu",
) -> None:
    """Answer requests at /v1/completions, /v1/chat/completions and /v1/models, streamed on request.

    Requests run one after the other. Chat needs a tokenizer with a chat template. Needs `pip install 'fas[serve]'`.

    Example: `fas serve gpt2-snn --port 8000`
    """
    with Output.opened(context, False) as output:
        from fas.loading import load
        from fas.serving import Limits, listen, server

        loaded = load(model, device)
        loaded.need_converted()
        loaded.set(timesteps, schedule)
        called = name or Path(model).name
        with listen(host, port) as socket:
            where = f"http://{host}:{socket.getsockname()[1]}"
            told = f"{called} answers at {where}/v1, T = {loaded.model.timesteps}; Ctrl-C ends it"
            limits = Limits(waiting, patience, token=token)
            application = server(loaded, called, limits, lambda: output.remark(told))
            if token is None and not ipaddress.ip_address(socket.getsockname()[0]).is_loopback:
                output.remark("other machines may use it without a token: --token asks for one")
            # It has ended cleanly by then, and raises the signal again.
            with suppress(KeyboardInterrupt):
                application.run(sockets=[socket])
            # The end of the process would look for garbage among all that was imported, for seconds.
            gc.freeze()

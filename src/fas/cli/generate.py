"""``fas generate``: text from a model, spiking or dense, as it is made; from an image too."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fas.cli.program.options import Device, Json, Model, OwnSchedule, OwnTimesteps, Seed
from fas.cli.program.output import Output
from fas.cli.program.session import printable


def generate(
    context: typer.Context,
    model: Model,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Text to continue; may be empty with --image.")] = "",
    image: Annotated[Path | None, typer.Option(help="Image file, for a model that reads images and text.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to add.", min=1)] = 64,
    temperature: Annotated[float, typer.Option(help="Above 0, sample; at 0, take the likeliest token.", min=0)] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens of this share.", min=0, max=1)] = 1.0,
    num_beams: Annotated[int, typer.Option(help="Beams to search.", min=1)] = 1,
    timesteps: OwnTimesteps = None,
    schedule: OwnSchedule = None,
    margin: Annotated[
        float | None,
        typer.Option(help="Online: stop a token's time steps once the best logit leads by this much.", min=0),
    ] = None,
    stream: Annotated[bool, typer.Option(help="Show text as it is generated.")] = True,
    device: Device = "cpu",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Continue a prompt, or answer about an image.

    Example: `fas generate embedded-snn -p "def read(self, path):" --temperature 0.8`

    Example: `fas generate git-snn --image frog.png -p "what is at the top left ?"`
    """
    with Output.opened(context, as_json) as output:
        import torch
        from transformers import TextStreamer, set_seed

        from fas.data.image_text import model_inputs
        from fas.data.images import open_image
        from fas.data.table import check_ids
        from fas.evaluation.captions import prompt_length
        from fas.loading import load
        from fas.runtime.anytime import Anytime

        loaded = load(model, device)
        if not hasattr(loaded.model, "generate"):
            raise ValueError(f"{type(loaded.model).__name__} does not generate text: take a causal language model")
        tokenizer = loaded.need_tokenizer()
        loaded.set(timesteps, schedule)
        if image is not None:
            inputs = model_inputs(loaded.model, loaded.need_processor(), open_image(image), prompt)
            inputs = {name: x.to(loaded.model.device) for name, x in inputs.items()}
        else:
            inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(loaded.model.device)
        given = inputs["input_ids"][0].clone()
        if not inputs["input_ids"].numel():
            raise ValueError("the prompt is empty: --prompt needs at least one token")
        check_ids(inputs["input_ids"].tolist(), tokenizer, loaded.vocabulary)
        _check_length(loaded, inputs["input_ids"].shape[1], max_new_tokens)
        set_seed(seed)
        samples = temperature > 0
        arguments: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_beams": num_beams, "do_sample": samples}
        if samples:
            arguments |= {"temperature": temperature, "top_p": top_p}
        anytime = None if margin is None else Anytime(margin)
        if anytime is not None:
            arguments["custom_generate"] = anytime
        if tokenizer.pad_token_id is None:
            arguments["pad_token_id"] = tokenizer.eos_token_id
        if stream and num_beams == 1 and not as_json:
            streamer = TextStreamer(tokenizer, skip_prompt=image is not None)
            # What a model writes is shown as text, and never steers the terminal.
            show = streamer.on_finalized_text
            streamer.on_finalized_text = lambda text, stream_end=False: show(printable(text), stream_end=stream_end)
            arguments["streamer"] = streamer
        began = time.perf_counter()
        with torch.no_grad():
            ids = loaded.model.generate(**inputs, **arguments)
        seconds = time.perf_counter() - began
        made = len(ids[0]) - prompt_length(ids[0], given)
        # With an image what is said is an answer, and no longer text.
        text = tokenizer.decode(ids[0] if image is None else ids[0][len(ids[0]) - made :], skip_special_tokens=True)
        if "streamer" not in arguments:
            output.text(text)
        about = {**loaded.conditions, "prompt": prompt, "text": text, "new_tokens": made}
        output.measure("decode_speed", made / seconds, "tokens/s", **about)
        if anytime is not None:
            output.measure("mean_timesteps", anytime.mean_steps, "steps", margin=margin, **about)
            output.remark(f"mean time steps per token: {anytime.mean_steps:.2f} of {loaded.model.timesteps}")


def _check_length(loaded: Any, prompt: int, new: int) -> None:
    """Refuse more tokens than the model has positions for, before the first is computed."""
    context = loaded.context
    if context is not None and not loaded.model.config.is_encoder_decoder and prompt + new > context:
        raise ValueError(
            f"{prompt} tokens of the prompt and {new} new ones exceed the model's context of {context}: "
            f"pass --max-new-tokens {max(1, context - prompt)}, or a shorter prompt"
        )

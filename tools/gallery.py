"""Write docs/gallery.md: what real models say before and after conversion, and what spikes in them.

    make models
    fas convert build/models/smollm2-135m build/gallery/smollm2-135m --data TEXT --tokens 4096
    python tools/gallery.py build/models/smollm2-135m:build/gallery/smollm2-135m

Every argument names a dense directory and the one converted from it, with a colon between them. Both answer the same
prompts in the chat template of the model, greedily; a model without one continues the prompt.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import fas
from fas.energy.inventory import operations
from fas.storage.directory import write_text

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "What is 2 + 2?",
    "Name three colours.",
    "Explain in one sentence why the sky is blue.",
    "Translate 'good morning' to Spanish.",
    "Who wrote Romeo and Juliet?",
    "Give me a short recipe for tea.",
    "What do bees make?",
    "List two uses of a hammer.",
)


def answers(model: Any, tokenizer: Any, prompts: tuple[str, ...], tokens: int) -> list[list[int]]:
    """Return the tokens that a model writes greedily after each prompt."""
    found = []
    for prompt in prompts:
        text = prompt
        if getattr(tokenizer, "chat_template", None):
            turn = [{"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            written = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        found.append(written[0, inputs["input_ids"].shape[1] :].tolist())
    return found


def leading(ours: list[int], theirs: list[int]) -> int:
    """Return how many tokens from the first are equal."""
    pairs = zip(ours, theirs, strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(ours), len(theirs)))


def chapter(dense: str, spiking: str, tokens: int) -> Iterator[str]:
    """Yield the lines about one model."""
    before, after = fas.load(dense), fas.load(spiking)
    name = Path(dense).name
    ours, theirs = (answers(loaded.model, before.tokenizer, PROMPTS, tokens) for loaded in (after, before))
    equal = [leading(*pair) for pair in zip(ours, theirs, strict=True)]
    lengths = [max(map(len, pair)) for pair in zip(ours, theirs, strict=True)]
    same = sum(one == other for one, other in zip(ours, theirs, strict=True))
    yield f"\n## {name}\n\n```text"
    yield from fas.summarise(after.model).lines()
    yield (
        f"```\n\nOf {len(PROMPTS)} answers of at most {tokens} tokens, greedy, {same} are equal to the last token; "
        f"{sum(equal)} of {sum(lengths)} tokens come before the first that differs.\n"
    )
    yield "| prompt | dense | spiking | equal from the first |\n|---|---|---|---|"
    for i, prompt in enumerate(PROMPTS):
        texts = [_cell(before.tokenizer.decode(ids[i], skip_special_tokens=True)) for ids in (theirs, ours)]
        yield f"| {prompt} | {texts[0]} | {texts[1]} | {equal[i]} of {lengths[i]} |"
    yield "\nWhat `fas inspect` says of its operations (`*` for the number of a block; how many for one token):\n"
    yield "| where | operation | how many | arrives | left | a token |\n|---|---|---|---|---|---|"
    for o in operations(after.model):
        yield f"| {_cell(o.path)} | {o.what} | {o.count} | {o.arrives} | {o.left} | {o.amount:,} |"
    if (ROOT / "docs" / "images" / f"{name}.png").exists():
        yield (
            "\nThe head of its report (`fas report OUT --timesteps 8 --test-tokens 1024 --counted-tokens 256 "
            "--window 256 --no-coarse --no-anytime`, converted with `--neuron signed_digit`; the first 1,024 tokens of "
            "the raw test split):\n"
        )
        yield f"![The head of its report](images/{name}.png)"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="DENSE:SPIKING")
    parser.add_argument("--tokens", type=int, default=32, help="written after each prompt")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "gallery.md")
    arguments = parser.parse_args()
    lines = [
        "# Gallery",
        "\nReal models before and after `fas convert` with its defaults. Written by `tools/gallery.py`; figures of "
        "quality are in [real models](real-models.md); seconds are those of the machine that made the page, which may "
        "have been busy.",
    ]
    for pair in arguments.models:
        dense, _, spiking = pair.partition(":")
        lines += chapter(dense, spiking, arguments.tokens)
        print("\n".join(lines[2:]), flush=True)
    write_text(arguments.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

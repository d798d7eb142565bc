"""Write docs/gallery.md: what real models say before and after conversion, and what spikes in them.

    make models
    fas convert build/models/smollm2-135m build/gallery/smollm2-135m --data TEXT --tokens 4096
    python tools/gallery.py build/models/smollm2-135m:build/gallery/smollm2-135m

Every argument names a dense directory and the one converted from it, with a colon between them. A model with a chat
template answers questions, one without continues sentences, both greedily; an encoder compares pairs of sentences.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
BEGINNINGS = (
    "The capital of France is",
    "Water boils at",
    "One, two, three, four,",
    "The opposite of hot is",
    "Once upon a time, there was a",
    "The sky is blue because",
    "def fibonacci(n):",
    "The three primary colours are",
    "Shakespeare wrote",
    "A good recipe for tea:",
)
PAIRS = (
    ("A man is playing a guitar.", "Someone plays an instrument."),
    ("The cat sleeps on the sofa.", "A cat is lying on the couch."),
    ("How do I reset my password?", "I cannot remember my login."),
    ("The stock market fell sharply today.", "Shares lost much of their value."),
    ("A child runs through the park.", "The recipe needs two eggs."),
    ("The train leaves at noon.", "Bees make honey."),
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


def written(before: fas.Loaded, after: fas.Loaded, tokens: int) -> Iterator[str]:
    """Yield a table of what both networks write."""
    tokenizer = before.need_tokenizer()
    prompts = PROMPTS if getattr(tokenizer, "chat_template", None) else BEGINNINGS
    ours, theirs = (answers(loaded.model, tokenizer, prompts, tokens) for loaded in (after, before))
    equal = [leading(*pair) for pair in zip(ours, theirs, strict=True)]
    lengths = [max(map(len, pair)) for pair in zip(ours, theirs, strict=True)]
    same = sum(one == other for one, other in zip(ours, theirs, strict=True))
    yield (
        f"Of {len(prompts)} texts of at most {tokens} tokens, greedy, {same} are equal to the last token; "
        f"{sum(equal)} of {sum(lengths)} tokens come before the first that differs.\n"
    )
    yield "| prompt | dense | spiking | equal from the first |\n|---|---|---|---|"
    for i, prompt in enumerate(prompts):
        texts = [_cell(tokenizer.decode(ids[i], skip_special_tokens=True)) for ids in (theirs, ours)]
        yield f"| {prompt} | {texts[0]} | {texts[1]} | {equal[i]} of {lengths[i]} |"


def embeddings(loaded: fas.Loaded, sentences: list[str]) -> Tensor:
    """Return the mean hidden state over the tokens of each sentence, of norm 1: [sentences, channels]."""
    inputs = loaded.need_tokenizer()(sentences, return_tensors="pt", padding=True)
    with torch.no_grad():
        hidden = loaded.model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def compared(before: fas.Loaded, after: fas.Loaded) -> Iterator[str]:
    """Yield a table of how alike both networks find pairs of sentences."""
    sentences = [sentence for pair in PAIRS for sentence in pair]
    theirs, ours = (embeddings(loaded, sentences) for loaded in (before, after))
    between = (ours * theirs).sum(-1)
    yield (
        "How alike two sentences are: the cosine of their embeddings (hidden states, mean over the tokens). Between "
        f"the dense and the spiking embedding of one sentence it is {between.mean():.4f} in the mean, at least "
        f"{between.min():.4f}.\n"
    )
    yield "| one sentence | another | dense | spiking |\n|---|---|---|---|"
    for i, (one, other) in enumerate(PAIRS):
        alike = [float(x[2 * i] @ x[2 * i + 1]) for x in (theirs, ours)]
        yield f"| {one} | {other} | {alike[0]:.3f} | {alike[1]:.3f} |"


def chapter(dense: str, spiking: str, tokens: int) -> Iterator[str]:
    """Yield the lines about one model."""
    before, after = fas.load(dense), fas.load(spiking)
    name = Path(dense).name
    yield f"\n## {name}\n\n```text"
    yield from fas.summarise(after.model).lines()
    yield "```\n"
    yield from written(before, after, tokens) if before.generates else compared(before, after)
    yield "\nWhat `fas inspect` says of its operations (`*` for the number of a block; how many for one token):\n"
    yield "| where | operation | how many | arrives | left | a token |\n|---|---|---|---|---|---|"
    for o in operations(after.model):
        yield f"| {_cell(o.path)} | {o.what} | {o.count} | {o.arrives} | {o.left} | {o.amount:,} |"
    if not before.generates:
        yield "\nIt has no report: an encoder without a head has no score to report."
    if (ROOT / "docs" / "images" / f"{name}.png").exists():
        yield (
            "\nThe head of its report (`fas report OUT --timesteps 8 --test-tokens 1024 --counted-tokens 256 "
            "--window 256 --no-coarse --no-anytime`; the first 1,024 tokens of the raw test split):\n"
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

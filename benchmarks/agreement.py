"""How often a spike count depends on the number format or on how the work is cut up, and what it does to quality.

    python benchmarks/agreement.py src/fas/assets/stdlib-gpt2 --train stdlib --test stdlib --out build/agreement.json

One model is calibrated in float32. The same tokens then run in float64, bfloat16 and float16 (thresholds stay
float32), and in float32 in other batches, behind padding, one token at a time with the cache, and on other
numbers of threads. Counts of every neuron are compared with those of the plain float32 run.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import fas
from fas.data.text import batches, load_documents, token_stream, windows
from fas.layers.population import Population

Counts = dict[str, list[Tensor]]


def main() -> None:
    """Measure one model and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--neurons", nargs="+", default=["signed_if", "ternary_phase"])
    parser.add_argument("--timesteps", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--tokens", type=int, default=8192, help="for calibration")
    parser.add_argument("--test-tokens", type=int, default=4096)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    train = token_stream(load_documents(arguments.train), tokenizer)
    test = token_stream(load_documents(arguments.test, split="test"), tokenizer)
    calibration = batches(windows(train, 256, limit_tokens=arguments.tokens, seed=0), 16)
    ids = test[: arguments.test_tokens // 128 * 128].view(-1, 128)
    rows = []
    for neuron in arguments.neurons:
        for timesteps in arguments.timesteps:
            model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
            fas.convert(model, fas.FAS(timesteps=timesteps, neuron=neuron), calibration=calibration)
            for row in compare(model, ids):
                rows.append({"neuron": neuron, "timesteps": timesteps, **row})
                print(
                    "  ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in rows[-1].values())
                )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def compare(model: Any, ids: Tensor) -> Iterator[dict[str, Any]]:
    """Yield a row for every way to run the same tokens [B, S]."""
    plain, loss = run(model, ids)
    ways: dict[str, Any] = {
        "float64": lambda: run(cast(model, torch.float64), ids),
        "bfloat16": lambda: run(cast(model, torch.bfloat16), ids),
        "float16": lambda: run(cast(model, torch.float16), ids),
        "one sequence at a time": lambda: join([run(model, row[None]) for row in ids]),
        "batch of eight": lambda: join([run(model, rows) for rows in ids.split(8)]),
        "behind 7 padding tokens": lambda: run(model, ids, padding=7),
        "token by token, cache": lambda: run(model, ids, cached=True),
        "one thread": lambda: one_thread(model, ids),
    }
    for name, way in ways.items():
        counts, other = way()
        total = differing = far = 0
        for path, expected in plain.items():
            difference = (torch.cat(expected).sub(torch.cat(counts[path]))).abs()
            total += difference.numel()
            differing += int((difference > 0).sum())
            far += int((difference > 1).sum())
        yield {
            "way": name,
            "counts": total,
            "differing": differing / total,
            "by_more_than_one": far / total,
            "perplexity_ratio": math.exp(other - loss),
        }


def run(model: Any, ids: Tensor, *, padding: int = 0, cached: bool = False) -> tuple[Counts, float]:
    """Return the counts of every site, rows in the order of the tokens, and the mean loss."""
    batch, length = ids.shape
    with counting(model) as counts, torch.no_grad():
        if cached:
            past, logits = None, []
            for t in range(length):
                answer = model(input_ids=ids[:, t : t + 1], past_key_values=past, use_cache=True)
                past = answer.past_key_values
                logits.append(answer.logits)
            answers = torch.cat(logits, 1)
        elif padding:
            filler = ids.new_zeros(batch, padding)
            mask = torch.cat([filler, torch.ones_like(ids)], 1)
            positions = (mask.cumsum(1) - 1).clamp_min(0)
            padded = torch.cat([filler, ids], 1)
            answers = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits[:, padding:]
        else:
            answers = model(input_ids=ids).logits
    for path, found in counts.items():
        if cached:
            found[:] = [torch.stack(found, 1).flatten(0, 1).view(batch * length, -1)]
        else:
            rows = found[0].view(batch, padding + length, -1)[:, padding:]
            found[:] = [rows.reshape(batch * length, -1)]
        assert len(found[0]) == batch * length, path
    loss = torch.nn.functional.cross_entropy(answers[:, :-1].flatten(0, 1).double(), ids[:, 1:].flatten())
    return counts, float(loss)


def cast(model: Any, dtype: torch.dtype) -> Any:
    """Return a copy of the model in another number format."""
    return copy.deepcopy(model).to(dtype)


def join(parts: list[tuple[Counts, float]]) -> tuple[Counts, float]:
    """Put runs of parts of the batch together, all of the same size."""
    counts = {path: [counts[path][0] for counts, _ in parts] for path in parts[0][0]}
    return counts, sum(loss for _, loss in parts) / len(parts)


def one_thread(model: Any, ids: Tensor) -> tuple[Counts, float]:
    """Run on a single thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run(model, ids)
    finally:
        torch.set_num_threads(threads)


@contextmanager
def counting(model: Any) -> Iterator[Counts]:
    """Note the count of every neuron for every row, from what it receives, by the arithmetic of the library."""
    counts: Counts = {}

    def note(population: Population, arguments: tuple[Any, ...]) -> None:
        x = arguments[0]
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        code, timesteps = population.code(x.dtype), population.simulation.timesteps
        levels = torch.floor((x - code.offset) * code.scale + code.v_init)
        found = population.neuron.settle(levels, timesteps).to(torch.int16)
        counts.setdefault(population.path, []).append(found.flatten(0, -2) if not found.ndim == 3 else found.squeeze(1))

    handles = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, Population)]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


if __name__ == "__main__":
    main()

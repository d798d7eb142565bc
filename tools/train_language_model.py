"""Train a small causal language model with its own byte-level BPE tokenizer, on a CPU.

    PYTHONPATH=src python tools/train_language_model.py embedded --minutes 25
    PYTHONPATH=src python tools/train_language_model.py english --minutes 40 --data DIR

`embedded` is a GPT-2 trained on the Python standard library; `english` is an OPT trained on
WikiText-2 (`DIR` holds train.txt, valid.txt and test.txt). An interrupted run continues from its
last checkpoint when the same command is run again.
"""

import argparse
import math
import platform
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import Module
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, OPTConfig, PreTrainedTokenizerFast

from fas.data.stdlib import stdlib_text

Split = Literal["train", "heldout"]
CONTEXT, BATCH, PEAK_RATE = 256, 8, 2e-3
# The tokenizer trainer numbers its special tokens in this order: 0 and 1.
SEPARATOR, PADDING = "<|endoftext|>", "<|padding|>"
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
GPT2_SHAPE = {"n_positions": CONTEXT, "n_embd": 192, "n_layer": 4, "n_head": 6}
GPT2 = GPT2Config(**SPECIAL, **GPT2_SHAPE, **NO_DROPOUT, vocab_size=2048)
OPT_WIDTH = {"hidden_size": 192, "word_embed_proj_dim": 192, "ffn_dim": 768}
OPT_DEPTH = {"num_hidden_layers": 4, "num_attention_heads": 6, "max_position_embeddings": CONTEXT}
OPT = OPTConfig(**SPECIAL, **OPT_WIDTH, **OPT_DEPTH, vocab_size=4096, dropout=0.0)


def wikitext(split: Split, directory: Path) -> list[str]:
    """Return the articles of WikiText-2's train.txt or, held out, test.txt."""
    text = (directory / {"train": "train.txt", "heldout": "test.txt"}[split]).read_text(encoding="utf-8")
    # A title line is " = Name = "; section titles have more than one equals sign.
    return [part for part in re.split(r"(?m)^(?= = [^=\n]+ = $)", text) if part.strip()]


@dataclass(frozen=True)
class Preset:
    """What is trained on what; `texts` returns the documents of a split, given `--data`."""

    corpus: str
    texts: Callable[[Split, Path], list[str]]
    config: transformers.PreTrainedConfig
    storage: torch.dtype
    out: Path


PRESETS = {
    "embedded": Preset(
        corpus=f"source text of the standard library of Python {platform.python_version()}, "
        "split by `fas.data.stdlib.stdlib_text`",
        texts=lambda split, _: stdlib_text(split),
        config=GPT2,
        storage=torch.float16,
        out=Path("src/fas/assets/stdlib-gpt2"),
    ),
    "english": Preset(
        corpus="WikiText-2, word-level text with `<unk>`: train.txt; held out is test.txt",
        texts=wikitext,
        config=OPT,
        storage=torch.float32,
        out=Path("build/models/wikitext2-opt"),
    ),
}


def train_tokenizer(documents: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer whose first tokens are the separator and the padding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), [SEPARATOR, PADDING]
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(documents, trainer)
    names = {"bos_token": SEPARATOR, "eos_token": SEPARATOR, "pad_token": PADDING}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=CONTEXT, **names)


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> torch.Tensor:
    """Return one stream of token ids `[N]`, each document led by the separator."""
    rows = tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor([token for row in rows for token in [tokenizer.eos_token_id, *row]])


def draw_batch(stream: torch.Tensor, step: int, rows: int, seed: int) -> torch.Tensor:
    """Return the windows `[rows, CONTEXT + 1]` of a step: a function of seed and step alone.

    Every epoch visits each window once, in a new order and with new window borders.
    """
    windows = (len(stream) - 1 - CONTEXT) // CONTEXT
    epoch, index = divmod(step, windows // rows)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    offset = int(torch.randint(CONTEXT, (), generator=generator))
    order = torch.randperm(windows, generator=generator)[index * rows : (index + 1) * rows]
    return stream[offset + order[:, None] * CONTEXT + torch.arange(CONTEXT + 1)]


@torch.no_grad()
def heldout_loss(model: Module, stream: torch.Tensor, windows: int | None = None) -> float:
    """Return the mean negative log-likelihood in nats per token over disjoint windows."""
    total, count = 0.0, 0
    for start in range(0, len(stream) - 1, CONTEXT)[:windows]:
        tokens = stream[start : start + CONTEXT + 1]
        logits = model(input_ids=tokens[None, :-1]).logits[0].float()
        total += float(cross_entropy(logits, tokens[1:], reduction="sum"))
        count += len(tokens) - 1
    return total / count


def learning_rate(progress: float) -> float:
    """Return the rate at a fraction of the run: linear warm-up over 3 %, cosine to 2 % of peak."""
    cosine = 0.5 + 0.5 * math.cos(math.pi * (progress - 0.03) / 0.97)
    return PEAK_RATE * (progress / 0.03 if progress < 0.03 else 0.02 + 0.98 * cosine)


def save_checkpoint(folder: Path, model: Module, optimizer: Optimizer, step: int, seconds: float) -> None:
    """Write parameters, optimizer state and position; a kill while writing keeps the last one."""
    tensors = {"step": torch.tensor(step), "seconds": torch.tensor(seconds, dtype=torch.float64)}
    for name, parameter in model.named_parameters():
        tensors[f"parameter/{name}"] = parameter.detach()
        tensors |= {f"{key}/{name}": value for key, value in optimizer.state[parameter].items()}
    save_file(tensors, folder / "checkpoint.new")
    (folder / "checkpoint.new").rename(folder / "checkpoint.safetensors")


def load_checkpoint(folder: Path, model: Module, optimizer: Optimizer) -> tuple[int, float]:
    """Restore what `save_checkpoint` wrote and return step and seconds: zeros without a file."""
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0, 0.0
    tensors = load_file(path)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(tensors[f"parameter/{name}"])
        for key in ("step", "exp_avg", "exp_avg_sq"):
            optimizer.state[parameter][key] = tensors[f"{key}/{name}"]
    return int(tensors["step"]), float(tensors["seconds"])


def train(name: str, data: Path, minutes: float, steps: int | None, threads: int, seed: int) -> None:
    """Train a preset and write its transformers directory."""
    torch.set_num_threads(threads)
    preset = PRESETS[name]
    work = Path("build/training") / name
    work.mkdir(parents=True, exist_ok=True)
    documents = preset.texts("train", data)
    if not (work / "tokenizer.json").exists():
        train_tokenizer(documents, preset.config.vocab_size).save_pretrained(work)
    tokenizer = AutoTokenizer.from_pretrained(work)
    stream = encode(tokenizer, documents)
    heldout_documents = preset.texts("heldout", data)
    heldout = encode(tokenizer, heldout_documents)

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(preset.config, dtype=torch.float32)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98), fused=True)
    step, before = load_checkpoint(work, model, optimizer)
    print(f"{model.num_parameters()} parameters, {len(stream)} tokens, from step {step}", flush=True)

    first, start = step, time.monotonic()
    saved = start
    while (progress := step / steps if steps else (before + time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress)
        tokens = draw_batch(stream, step, BATCH, seed)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            speed = (step - first) * BATCH * CONTEXT / (time.monotonic() - start)
            print(f"{step} {progress:.1%} loss {loss.item():.3f} {speed:.0f} tokens/s", flush=True)
        if time.monotonic() - saved > 180:
            saved = time.monotonic()
            save_checkpoint(work, model, optimizer, step, before + saved - start)
            quick = math.exp(heldout_loss(model, heldout, windows=64))
            print(f"{step} held-out perplexity {quick:.2f} (first 64 windows)", flush=True)

    fresh = preset.out.with_name(preset.out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    # Half precision is for storage only: config.json says float32, and loading converts.
    stored = {key: parameter.to(preset.storage) for key, parameter in model.named_parameters()}
    model.save_pretrained(fresh, state_dict=stored)
    (fresh / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(fresh)
    nats = heldout_loss(AutoModelForCausalLM.from_pretrained(fresh), heldout)
    size = sum(len(text.encode()) for text in heldout_documents)
    passes = step * BATCH * CONTEXT / len(stream)
    schedule = f"{steps} steps" if steps else f"{minutes:g} minutes of wall clock"
    card = f"""# {preset.config.model_type} trained on {name} text

- Corpus: {preset.corpus}.
- Parameters: {model.num_parameters()}, stored as {preset.storage}, loaded as float32.
- Training: {step} steps of {BATCH} windows of {CONTEXT} tokens, {passes:.2f} passes over
  {len(stream)} tokens; seed {seed}; schedule by {schedule}.
- Optimizer: AdamW, peak rate {PEAK_RATE}, linear warm-up, cosine; bfloat16 autocast.
- Held-out perplexity: {math.exp(nats):.3f} per token ({len(heldout)} tokens, disjoint windows of
  {CONTEXT}, float32), {nats * len(heldout) / math.log(2) / size:.4f} bits per byte.
- Made with {threads} thread(s), torch {torch.__version__}, transformers {transformers.__version__}.

Command that repeats the training with a schedule by steps (`english` also takes `--data DIR`):

    PYTHONPATH=src python tools/train_language_model.py {name} \\
        --steps {step} --threads {threads} --seed {seed}
"""
    (fresh / "README.md").write_text(card)
    shutil.rmtree(preset.out, ignore_errors=True)
    fresh.rename(preset.out)
    shutil.rmtree(work)
    print(card)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", metavar="preset", choices=PRESETS)
    parser.add_argument("--data", type=Path, default=Path("."), help="corpus directory (english)")
    parser.add_argument("--minutes", type=float, default=25, help="wall-clock budget (default: 25)")
    parser.add_argument("--steps", type=int, help="train this many steps instead: repeatable")
    parser.add_argument("--threads", type=int, default=1, help="1 (default) suits a shared machine best")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(**vars(arguments))


if __name__ == "__main__":
    main()

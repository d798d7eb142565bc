"""Train a small BERT classifier from scratch on a GLUE single-sentence task, on a CPU.

    python tools/train_classifier.py --data DIR --vocab DIR --minutes 10

`--data` holds train.tsv and dev.tsv with the header "sentence<TAB>label"; `--vocab` is a
tokenizer directory, for example bert-uncased.
"""

import argparse
import random
import shutil
import time
from pathlib import Path

import torch
import transformers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerBase,
)

LABELS = {0: "negative", 1: "positive"}
Example = tuple[str, int]


def read_examples(path: Path) -> list[Example]:
    """Return the (sentence, label) rows of a GLUE tsv file with the header sentence, label."""
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    if header.split("\t") != ["sentence", "label"]:
        raise ValueError(f"{path} must begin with sentence<TAB>label, got {header!r}")
    rows = [line.split("\t") for line in lines]
    return [(sentence.strip(), int(label)) for sentence, label in rows]


def batches(examples: list[Example], rows: int, rng: random.Random) -> list[list[Example]]:
    """Return one epoch of shuffled batches, each of sentences of like length to save padding."""
    keyed = [(len(example[0]) + 10 * rng.random(), example) for example in examples]
    ordered = [example for _, example in sorted(keyed)]
    epoch = [ordered[start : start + rows] for start in range(0, len(ordered), rows)]
    rng.shuffle(epoch)
    return epoch


def collate(tokenizer: PreTrainedTokenizerBase, batch: list[Example]) -> dict[str, torch.Tensor]:
    """Return `input_ids`, `attention_mask` and `token_type_ids` `[B, S]` and `labels` `[B]`."""
    encoded = tokenizer([sentence for sentence, _ in batch], padding=True, truncation=True, return_tensors="pt")
    return {**encoded, "labels": torch.tensor([label for _, label in batch])}


@torch.no_grad()
def accuracy(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, examples: list[Example]) -> float:
    """Return the fraction of examples whose largest logit is at the label."""
    model.eval()
    right = 0
    for start in range(0, len(examples), 64):
        inputs = collate(tokenizer, examples[start : start + 64])
        labels = inputs.pop("labels")
        right += int((model(**inputs).logits.argmax(-1) == labels).sum())
    return right / len(examples)


def train(data: Path, vocab: Path, out: Path, minutes: float, steps: int | None, threads: int, seed: int) -> None:
    """Train on train.tsv, measure on dev.tsv and write the transformers directory `out`."""
    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(vocab, model_max_length=128)
    examples, dev = read_examples(data / "train.tsv"), read_examples(data / "dev.tsv")
    torch.manual_seed(seed)
    rng = random.Random(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=128,
        # Without pretraining the model memorises the sentences within a few passes.
        hidden_dropout_prob=0.3,
        pad_token_id=tokenizer.pad_token_id,
        id2label=LABELS,
        label2id={label: index for index, label in LABELS.items()},
    )
    model = BertForSequenceClassification(config)
    rows, peak = 64, 6e-4
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.1, fused=True)
    print(f"{model.num_parameters()} parameters, {len(examples)} sentences", flush=True)

    step, start = 0, time.monotonic()
    epoch: list[list[Example]] = []
    while True:
        progress = step / steps if steps else (time.monotonic() - start) / (60 * minutes)
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = peak * min(progress / 0.05, (1 - progress) / 0.95)
        epoch = epoch or batches(examples, rows, rng)
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**collate(tokenizer, epoch.pop())).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 500 == 0:
            right = accuracy(model, tokenizer, dev)
            print(f"{step} {progress:.1%} loss {loss.item():.3f} dev {right:.4f}", flush=True)

    fresh = out.with_name(out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    model.save_pretrained(fresh)
    (fresh / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(fresh)
    right = accuracy(AutoModelForSequenceClassification.from_pretrained(fresh), tokenizer, dev)
    schedule = f"{steps} steps" if steps else f"{minutes:g} minutes of wall clock"
    card = f"""# BERT trained on {data.name}

- Corpus: {data.name} train.tsv, {len(examples)} sentences, from scratch (no pretraining).
- Parameters: {model.num_parameters()}, float32.
- Training: {step} steps of {rows} sentences, {step * rows / len(examples):.2f} passes; seed
  {seed}; schedule by {schedule}; AdamW, peak rate {peak}, linear warm-up and decay.
- Accuracy on dev.tsv: {right:.4f} ({len(dev)} sentences, float32).
- Made with {threads} thread(s), torch {torch.__version__}, transformers {transformers.__version__}.

Command, which repeats the training with a schedule by steps:

    python tools/train_classifier.py --data DIR --vocab DIR --steps {step} --threads {threads} --seed {seed}
"""
    (fresh / "README.md").write_text(card)
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)
    print(card)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="directory of train.tsv, dev.tsv")
    parser.add_argument("--vocab", type=Path, required=True, help="tokenizer directory")
    parser.add_argument("--out", type=Path, default=Path("build/models/sst2-bert"))
    parser.add_argument("--minutes", type=float, default=10, help="wall-clock budget (default: 10)")
    parser.add_argument("--steps", type=int, help="train this many steps instead: repeatable")
    parser.add_argument("--threads", type=int, default=1, help="1 (default) suits a shared machine best")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(**vars(arguments))


if __name__ == "__main__":
    main()

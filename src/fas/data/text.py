"""Text for language models: documents, one stream of tokens, windows of equal length."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fas.data.table import check_ids, hub_rows, read_records, read_utf8, texts_of
from fas.errors import DataError

HUB_ALIASES = {"wikitext": "Salesforce/wikitext:wikitext-2-raw-v1"}
RECORD_SUFFIXES = (".jsonl", ".json", ".tsv", ".csv")
TEXT_SUFFIXES = (".txt", ".raw", *RECORD_SUFFIXES)
SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("valid", "validation", "val", "dev"),
    "test": ("test",),
}
# Characters that are tokenised at once: the library of tokenizers takes some 70 bytes of memory for each.
PIECE = 1 << 18
# Characters on either side of a cut that decide whether it moves tokens, and places that are tried for a cut.
_CONTEXT, _TRIED = 64, 16
# Where a word begins.
_GAP = re.compile(r"(?<=\S) (?=\w)|(?<=\n)(?=\w)")


def load_documents(source: str | Path, *, split: str = "train") -> list[str]:
    """Load documents from a file, a directory, the standard library or the Hugging Face hub.

    - the name ``stdlib``: documentation text of Python's own modules, no download. Split ``train``
      is its train part, every other split its held-out part.
    - a .jsonl, .json, .tsv or .csv file: one document per row, from the column ``text``
      if there is one, else from the only column of strings.
    - any other file: one document, exactly as it stands.
    - a directory: its visible files by name. Where files are named after splits (``train.txt``,
      ``wiki.valid.raw``), only those of ``split``.
    - ``name`` or ``name:config``: a data set of the hub. ``wikitext`` stands for
      ``Salesforce/wikitext:wikitext-2-raw-v1``. Rows of wikitext are lines, so they become one
      document, joined by blank lines as in the perplexity guide of transformers; its token count
      is therefore above that of the plain ``wiki.test.raw`` file.

    A name in this list wins over a file of that name; write ``./stdlib`` or a Path for the file.

    Args:
        source: see above.
        split: ``train``, ``validation`` or ``test`` (``valid``, ``val``, ``dev`` mean validation);
            another value is handed to the hub as it is. Plain files have no splits: it is ignored.

    Raises:
        DataError: nothing of that name, no such split, several columns of text, or no text in it.
        MissingExtraError: a hub data set without the ``datasets`` library.
    """
    split = next((name for name, also in SPLIT_NAMES.items() if split in also), split)
    if source == "stdlib":
        from fas.data.stdlib import stdlib_text

        documents = stdlib_text("train" if split == "train" else "heldout")
    elif isinstance(source, str) and source in HUB_ALIASES:
        documents = _hub(HUB_ALIASES[source], split)
    elif Path(source).is_dir():
        documents = [text for file in _split_files(Path(source), split) for text in _file(file)]
    elif Path(source).exists():
        documents = _file(Path(source))
    elif isinstance(source, str) and _is_hub_name(source):
        documents = _hub(source, split)
    else:
        raise DataError(
            f"no file or directory {str(source)!r}, and it is not the name of a hub data set: "
            f"expected a path, 'stdlib', {', '.join(map(repr, HUB_ALIASES))}, or 'name:config' of a data set"
        )
    if not any(text.strip() for text in documents):
        raise DataError(f"{str(source)!r} holds no text (split {split!r}, {len(documents)} documents)")
    return documents


def leading_token(tokenizer: Any) -> int | None:
    """Return the token that a tokenizer puts in front of every text: BOS, [CLS] of BERT, None where it adds none."""
    whole = tokenizer("x", return_attention_mask=False)["input_ids"]
    plain = tokenizer("x", add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return int(whole[0]) if whole[:1] != plain[:1] else None


def token_stream(
    documents: Sequence[str],
    tokenizer: Any,
    *,
    vocab_size: int | None = None,
    bos: int | None = None,
    limit: int | None = None,
) -> Tensor:
    """Tokenise documents into one stream.

    The end-of-text token stands between them where the tokenizer has one. Of special tokens that the tokenizer adds by
    itself only ``bos`` is put in front of each document. A document longer than ``PIECE`` characters is tokenised in
    pieces, cut where the tokens on both sides stay as they are.

    Args:
        documents: the texts, in order.
        tokenizer: a transformers tokenizer.
        vocab_size: entries of the model's embedding; ids are checked against it if given.
        bos: first token of every document; ``leading_token`` finds it.
        limit: tokens after which nothing more is read; None reads all.

    Returns:
        int64 [N].

    Raises:
        DataError: no tokens at all, or an id that the model has no embedding for.
    """
    between = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    first = [] if bos is None else [bos]
    ids: list[int] = []
    words = 0
    for number, document in enumerate(_encoded(documents, tokenizer)):
        ids.extend((between if number else []) + first)
        for piece in document:
            ids.extend(piece)
            words += len(piece)
            if limit is not None and len(ids) >= limit:
                break
        if limit is not None and len(ids) >= limit:
            break
    if not words:
        raise DataError(f"{len(documents)} documents hold no tokens: expected text, check source and split")
    check_ids([ids], tokenizer, vocab_size)
    return torch.tensor(ids[:limit], dtype=torch.int64)


def windows(
    tokens: Tensor, length: int, *, limit_tokens: int | None = None, seed: int | None = None, bos: int | None = None
) -> Tensor:
    """Cut a stream into consecutive windows that do not overlap; a rest shorter than one is dropped.

    Args:
        tokens: int64 [N].
        length: tokens per window, ``bos`` included.
        limit_tokens: take at most this many tokens, in whole windows; None takes all.
        seed: which windows are taken under ``limit_tokens``: the first ones if None, else a random
            choice with this seed. They stay in the order of the text.
        bos: put in front of every window that does not begin with it.

    Returns:
        int64 [n, length].

    Raises:
        DataError: the stream is shorter than one window.
        ValueError: ``length`` below 1 (2 with ``bos``), ``limit_tokens`` below ``length``, or tokens not [N].
    """
    if tokens.ndim != 1:
        raise ValueError(f"tokens has shape {list(tokens.shape)}: expected one stream [N]")
    least = 1 if bos is None else 2
    if length < least:
        raise ValueError(f"length is {length}: expected at least {least} token{'s' * (least > 1)} per window")
    if limit_tokens is not None and limit_tokens < length:
        raise ValueError(f"limit_tokens is {limit_tokens}: expected at least one window of {length} tokens")
    rows = tokens[: len(tokens) // length * length].view(-1, length) if bos is None else _led(tokens, length, bos)
    if not len(rows):
        raise DataError(
            f"the text has {len(tokens)} tokens, one window needs {length}: give more text or shorter windows"
        )
    available = len(rows)
    taken = available if limit_tokens is None else min(available, limit_tokens // length)
    if seed is None or taken == available:
        return rows[:taken]
    order = torch.randperm(available, generator=torch.Generator().manual_seed(seed))
    return rows[order[:taken].sort().values]


def _led(tokens: Tensor, length: int, bos: int) -> Tensor:
    """Return windows [n, length] that each begin with ``bos``, the stream's own or one more."""
    starts, front, begin = (tokens == bos).tolist(), tokens.new_tensor([bos]), 0
    rows: list[Tensor] = []
    while begin < len(starts):
        has_own = starts[begin]
        end = begin + length - (not has_own)
        if end > len(starts):
            break
        rows.append(tokens[begin:end] if has_own else torch.cat([front, tokens[begin:end]]))
        begin = end
    return torch.stack(rows) if rows else tokens.new_empty(0, length)


def batches(rows: Tensor, batch_size: int) -> list[dict[str, Tensor]]:
    """Group windows [n, L] into model inputs of at most ``batch_size`` rows.

    Returns:
        dicts with ``input_ids`` int64 [B, L] and ``attention_mask`` int64 [B, L] (all ones).

    Raises:
        ValueError: ``batch_size`` below 1, or rows not [n, L].
    """
    if rows.ndim != 2:
        raise ValueError(f"rows has shape {list(rows.shape)}: expected windows [n, L]")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: expected at least 1")
    parts = rows.split(batch_size) if len(rows) else ()
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in parts]


def _encoded(texts: Sequence[str], tokenizer: Any) -> Iterator[Iterator[list[int]]]:

    def ids(parts: list[str]) -> list[list[int]]:
        # verbose=False: texts longer than the model's context are meant here, no cause to warn.
        found = tokenizer(parts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        return [list(row) for row in found]

    together: list[str] = []
    held = 0
    for text in (*texts, None):
        # Many short texts are tokenised together, which several cores share.
        if together and (text is None or held + len(text) > PIECE):
            yield from (iter([row]) for row in ids(together))
            together, held = [], 0
        if text is not None and len(text) > PIECE:
            yield (ids([piece])[0] for piece in _pieces(text, ids))
        elif text is not None:
            together.append(text)
            held += len(text)


def _pieces(text: str, ids: Callable[[list[str]], list[list[int]]]) -> Iterator[str]:
    """Yield stretches of a text whose tokens are those of the whole text, wherever such a cut is found."""
    begin = 0
    while len(text) - begin > PIECE:
        near = [found.start() for found in _GAP.finditer(text, begin + PIECE // 2, begin + PIECE)][-_TRIED:]
        cut = next((place for place in reversed(near) if _is_cut(text, place, ids)), begin + PIECE)
        yield text[begin:cut]
        begin = cut
    yield text[begin:]


def _is_cut(text: str, place: int, ids: Callable[[list[str]], list[list[int]]]) -> bool:
    before, after = text[place - _CONTEXT : place], text[place : place + _CONTEXT]
    left, right, whole = ids([before, after, before + after])
    return left + right == whole


def _file(path: Path) -> list[str]:
    if path.suffix.lower() in RECORD_SUFFIXES:
        return _column(str(path), read_records(path))
    return [read_utf8(path)]


def _split_files(folder: Path, split: str) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if not files:
        raise DataError(f"directory {folder} holds no files: expected text files")
    named = {path: _split_of(path) for path in files}
    if not any(named.values()):
        return files
    chosen = [path for path, name in named.items() if name == split]
    if not chosen:
        found = [path.name for path, name in named.items() if name]
        raise DataError(f"directory {folder} has no file for split {split!r}: it has {found}")
    return chosen


def _split_of(path: Path) -> str | None:
    last = path.stem.rsplit(".", 1)[-1]
    return next((name for name, also in SPLIT_NAMES.items() if last in also), None)


def _column(origin: str, records: list[dict[str, Any]]) -> list[str]:
    columns = list(records[0])
    strings = ["text"] if "text" in columns else [name for name in columns if _is_text(records, name)]
    if len(strings) != 1:
        raise DataError(
            f"{origin} has columns {columns}, {len(strings)} of them text: call the one that is meant 'text'"
        )
    return texts_of(records, strings[0], origin)


def _is_text(records: list[dict[str, Any]], name: str) -> bool:
    values = [record.get(name) for record in records]
    strings = [value for value in values if isinstance(value, str)]
    # In tsv and csv numbers arrive as strings.
    numbers = all(re.fullmatch(r"\s*[-+]?\d*\.?\d*\s*", value) for value in strings)
    return len(strings) == len(values) and not numbers


def _is_hub_name(source: str) -> bool:
    name = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?(:[\w.-]+)?", source)
    return name is not None and not source.lower().endswith(TEXT_SUFFIXES)


def _hub(source: str, split: str) -> list[str]:
    texts = _column(source, hub_rows(source, split))
    name = source.partition(":")[0]
    return ["\n\n".join(texts)] if name.rsplit("/", 1)[-1] == "wikitext" else texts

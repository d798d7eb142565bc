"""Data by name, as the model takes it: token windows for text, padded batches for tables."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mode
from typing import TYPE_CHECKING, Any

from fas.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from fas.loading import Loaded

logger = logging.getLogger(__name__)

Batches = Sequence[Mapping[str, "Tensor"]]
Calibration = Batches | Sequence[str] | str | Path
"""Inputs of a model's forward, documents, or the name of data: a text file, a directory, a hub data set, ``stdlib``."""

_LONGEST_ROW = 128
# Windows beyond this length cost memory and teach calibration nothing more.
_LONGEST = 512
# Thresholds from fewer tokens than this, padding left out, describe little.
_FEW = 256
_PADDED = 0.5


@dataclass(frozen=True)
class Sample:
    """How much of some data a model sees, and in what pieces.

    Attributes:
        tokens: in all, about; None takes everything.
        window: tokens per row; what the model takes, at most 512 and all, if None.
        batch_size: rows per call of the model.
        seed: of the choice of rows.
        option: that named the tokens, for messages.
    """

    tokens: int | None = 4096
    window: int | None = None
    batch_size: int = 16
    seed: int = 0
    option: str = "--tokens"

    def window_for(self, loaded: Loaded) -> int:
        """Return the length of a model's windows; more than all tokens is refused (ValueError)."""
        tokens = self.tokens or self.window or _LONGEST
        if self.window is not None and tokens < self.window:
            raise ValueError(f"{self.option} {tokens} holds no window of {self.window} tokens (--window): pass more")
        return self.window or min(_LONGEST, loaded.context or _LONGEST, tokens)


def default_data(loaded: Loaded, data: str | None = None, *, held_out: bool = False) -> str:
    """Return the name of the data asked for, else of those that belong to the model.

    Args:
        loaded: the model.
        data: as asked for.
        held_out: whether a figure is measured on it, which needs a part that calibration has not seen.

    Raises:
        DataError: none was named for a model that has none of its own, or only the file it was calibrated on.
    """
    found = data or loaded.data
    if found is not None:
        if held_out and data is None and Path(found).is_file():
            raise DataError(
                f"{loaded.name} was calibrated on {found}, a single file without a test part: name other data (--data)"
            )
        return found
    raise DataError(
        f"no data named for {loaded.name}: pass a text file, a jsonl or tsv file, a directory, or a hub data set "
        "(--data wikitext; --data stdlib needs no download)"
    )


def row_length(loaded: Loaded) -> int:
    """Return the tokens at which rows of a table are cut: 128 as usual for GLUE, or what the model takes."""
    return min(_LONGEST_ROW, loaded.context or _LONGEST_ROW)


def is_classifier(loaded: Loaded) -> bool:
    """Whether the model labels sentences."""
    return loaded.is_for("ForSequenceClassification")


def tokens(loaded: Loaded, data: str | Path | Sequence[str], split: str, limit: int | None = None) -> Tensor:
    """Return the token stream [N] of a text source, or of documents; ``limit`` tokens of it at most."""
    from fas.data.text import load_documents, token_stream

    documents = load_documents(data, split=split) if isinstance(data, str | Path) else data
    tokenizer = loaded.need_tokenizer()
    return token_stream(documents, tokenizer, vocab_size=loaded.vocabulary, bos=loaded.bos, limit=limit)


def contents(loaded: Loaded, source: str, split: str) -> list[str]:
    """Return what data say: rows of a table for a classifier, what is said of pictures, else documents."""
    from fas.data.image_text import load_pictures
    from fas.data.table import load_table
    from fas.data.text import load_documents

    if loaded.processor is not None:
        return ["\t".join([one.question or "", *one.references]) for one in load_pictures(source, split=split)]
    if not is_classifier(loaded):
        return load_documents(source, split=split)
    table = load_table(source, task="regression" if loaded.model.config.num_labels == 1 else None)
    return ["\t".join(row) for row in zip(table.sentences, table.pairs or [""] * len(table), strict=True)]


def check_apart(
    calibrating: Sequence[str], measured: Sequence[str], source: str, test_source: str, option: str = "--test-data"
) -> None:
    """Refuse documents, rows or digests that would calibrate and measure: by what they say, not by their source's name.

    Raises:
        ValueError: half of either, or more, is in the other too; it advises other data by ``option``.
    """
    for these, others in ((measured, set(calibrating)), (calibrating, set(measured))):
        shared = sum(len(one) for one in these if one in others)
        if shared and shared >= sum(map(len, these)) / 2:
            both = source if test_source == source else f"{source} and {test_source}"
            raise ValueError(f"the same data of {both} would calibrate and measure: name other data with {option}")


def training_rows(loaded: Loaded, data: Any, sample: Sample) -> Any:
    """Return token windows [n, L], or tokenised rows of a table."""
    if is_classifier(loaded):
        from fas.data.table import load_table, tokenise_table

        if not isinstance(data, str | Path):
            raise DataError(f"{loaded.name} labels sentences: name a table of them, documents have no labels")
        table, tokenizer = load_table(Path(data)), loaded.need_tokenizer()
        return tokenise_table(table, tokenizer, row_length(loaded), vocab_size=loaded.vocabulary)
    from fas.data.text import windows

    stream, length = tokens(loaded, data, "train"), sample.window_for(loaded)
    return windows(stream, length, limit_tokens=sample.tokens, seed=sample.seed, bos=loaded.bos)


def calibration_batches(loaded: Loaded, data: Calibration, sample: Sample) -> list[Any]:
    """Return inputs of the model's forward: those given, or as many as a sample of some data holds.

    Raises:
        TypeError: something else (a generator, one batch, a tensor); the message says what to pass.
        DataError: no such data, or a model that no data can be read for.
    """
    given = batches_given(data)
    if given is not None:
        return given
    if loaded.processor is not None:
        return _with_images(loaded, data, sample)
    takes = getattr(loaded.model, "main_input_name", "tensors")
    if takes != "input_ids":
        raise DataError(
            f"{loaded.name} takes {takes}, which cannot be read by name: call "
            "fas.calibrate(model, batches) in Python (fas convert --no-calibrate)"
        )
    rows = training_rows(loaded, data, sample)
    found = _padded(rows, loaded, sample) if is_classifier(loaded) else _text_batches(rows, loaded, sample)
    return _on_device(loaded, found)


def batches_given(data: Any) -> list[Any] | None:
    """Return the batches that data are already, None for text.

    Raises:
        TypeError: neither.
    """
    import torch

    if isinstance(data, str | Path):
        return None
    what = type(data).__name__
    wanted = "calibration takes a list of batches, documents, or the name of data"
    if isinstance(data, torch.Tensor):
        raise TypeError(f"{wanted}; this is one tensor {list(data.shape)}: pass [{{'input_ids': tensor}}]")
    if isinstance(data, Mapping):
        raise TypeError(f"{wanted}; this is one {what}: pass [batch]")
    if isinstance(data, Iterator) or not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise TypeError(f"{wanted}, which are read several times; this is a {what}: pass list(...) of it")
    first = data[0] if len(data) else {}
    if isinstance(first, str):
        return None
    if not isinstance(first, Mapping):
        raise TypeError(f"{wanted}; the first element is a {type(first).__name__}, not a dict of tensors or a string")
    strings = [name for name, value in first.items() if isinstance(value, str)]
    if strings:
        raise TypeError(f"{wanted}; these are rows with strings: pass a column of texts, data[{strings[0]!r}]")
    lists = [name for name, value in first.items() if isinstance(value, list | tuple)]
    if lists:
        raise TypeError(f"{wanted}; {lists[0]!r} of the first batch is a list: make tensors (return_tensors='pt')")
    return list(data)


def warn_of_batches(batches: Batches, config: Any) -> None:
    """Say so where batches for calibration have too few tokens, or are mostly padding that no mask marks."""
    ids = [batch["input_ids"] for batch in batches if "input_ids" in batch]
    masks = [batch["attention_mask"] for batch in batches if batch.get("attention_mask") is not None]
    seen = sum(int(mask.sum()) for mask in masks) if masks else sum(x.numel() for x in ids)
    if ids and seen < _FEW:
        logger.warning(
            "calibration sees %d tokens: thresholds from so few describe other text badly; give it %d or more, better "
            "thousands", seen, _FEW,
        )  # fmt: skip
    # A configuration that knows no padding gets what most rows end with.
    last = [row[-1] for x in ids for row in x.tolist() if row]
    if masks or not last:
        return
    pad = getattr(config, "pad_token_id", None)
    pad = mode(last) if pad is None else pad
    padding = sum(int((x == pad).sum()) for x in ids) / max(1, sum(x.numel() for x in ids))
    if padding > _PADDED:
        logger.warning(
            "%.0f %% of the calibration tokens look like padding (id %d), and no attention_mask says so: thresholds "
            "would be set for padding; pass attention_mask in every batch, as tokenizer(..., padding=True) makes it",
            100 * padding, pad,
        )  # fmt: skip


def name_of_data(data: Any) -> str | None:
    """Return the name by which data can be read again, None for batches and documents."""
    if isinstance(data, Path) or (isinstance(data, str) and Path(data).exists()):
        return str(Path(data).absolute())
    return data if isinstance(data, str) else None


def held_out_batches(loaded: Loaded, source: str, sample: Sample, *, new_tokens: int = 0) -> list[dict[str, Any]]:
    """Return inputs from the test part of a text, rows of a table for a classifier.

    ``new_tokens`` is the room to leave after each row.

    Raises:
        DataError: no data, or no room for the new tokens.
    """
    if is_classifier(loaded) or loaded.model.main_input_name != "input_ids":
        return calibration_batches(loaded, source, sample)
    from fas.data.text import windows

    length = sample.window_for(loaded)
    if loaded.context is not None:
        length = min(length, loaded.context - new_tokens)
    if length < 1:
        raise DataError(
            f"{new_tokens} new tokens leave no room for a prompt in the model's context of {loaded.context}: "
            "pass a smaller --new-tokens"
        )
    stream = tokens(loaded, source, "test")
    rows = windows(stream, length, limit_tokens=sample.tokens, seed=sample.seed, bos=loaded.bos)
    return _on_device(loaded, _text_batches(rows, loaded, sample, decoder=not new_tokens))


def _text_batches(rows: Any, loaded: Loaded, sample: Sample, *, decoder: bool = True) -> list[dict[str, Any]]:
    from fas.data.text import batches

    found = batches(rows, sample.batch_size)
    if loaded.model.config.is_encoder_decoder and decoder:
        # Without pairs of texts the decoder reads what the encoder reads.
        return [{**batch, "decoder_input_ids": batch["input_ids"]} for batch in found]
    return found


def _on_device(loaded: Loaded, batches: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    device = loaded.model.device
    return [{name: tensor.to(device) for name, tensor in batch.items()} for batch in batches]


def _with_images(loaded: Loaded, data: Any, sample: Sample) -> list[dict[str, Any]]:
    """Return images with the captions, or questions and answers, that the model would write."""
    import torch

    from fas.data.image_text import load_pictures, model_inputs, picture_batches

    pictures = load_pictures(data, split="train")
    rows, taken = [], 0
    for i in torch.randperm(len(pictures), generator=torch.Generator().manual_seed(sample.seed)).tolist():
        picture = pictures[i]
        prompt, image = picture.question or "", picture.opened()
        rows.append(model_inputs(loaded.model, loaded.processor, image, prompt, picture.references[0]))
        taken += rows[-1]["input_ids"].numel()
        if sample.tokens is not None and taken >= sample.tokens:
            break
    return _on_device(loaded, [inputs for _, inputs in picture_batches(rows, sample.batch_size)])


def _padded(rows: Any, loaded: Loaded, sample: Sample) -> list[dict[str, Any]]:
    import torch

    size = sample.batch_size
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(sample.seed)).tolist()
    found, taken = [], 0
    for start in range(0, len(order), size):
        chosen = [{k: v for k, v in rows[i].items() if k != "labels"} for i in order[start : start + size]]
        batch = dict(loaded.tokenizer.pad(chosen, return_tensors="pt"))
        found.append(batch)
        taken += int(batch["attention_mask"].sum())
        if sample.tokens is not None and taken >= sample.tokens:
            break
    return found

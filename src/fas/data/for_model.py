"""Data by name, as the model takes it: token windows for text, padded batches for tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fas.errors import DataError

if TYPE_CHECKING:
    from fas.loading import Loaded

_LONGEST_ROW = 128
# Windows beyond this length cost memory and teach calibration nothing more.
_LONGEST = 512


def window_of(loaded: Loaded, asked: int | None) -> int:
    """Return the length of windows: as asked for, else what the model takes, at most 512."""
    return asked or min(_LONGEST, loaded.context or _LONGEST)


def default_data(loaded: Loaded, data: str | None) -> str:
    """Return the name of the data asked for, else of those that belong to the model.

    Raises:
        DataError: none was named for a model that has none of its own.
    """
    found = data or loaded.data
    if found is not None:
        return found
    raise DataError(
        f"no data named for {loaded.name}: pass a text file, a jsonl or tsv file, a directory, or a hub data set"
    )


def row_length(loaded: Loaded) -> int:
    """Return the tokens at which rows of a table are cut: 128 as usual for GLUE, or what the model takes."""
    return min(_LONGEST_ROW, loaded.context or _LONGEST_ROW)


def is_classifier(loaded: Loaded) -> bool:
    """Whether the model labels sentences."""
    return loaded.is_for("ForSequenceClassification")


def tokens(loaded: Loaded, data: str, split: str, column: str | None = None) -> Any:
    """Return the token stream [N] of a text source."""
    from fas.data.text import load_documents, token_stream

    documents = load_documents(data, split=split, column=column)
    return token_stream(documents, loaded.need_tokenizer(), vocab_size=loaded.vocabulary)


def training_rows(loaded: Loaded, data: str, *, window: int | None, limit: int | None, seed: int) -> Any:
    """Return token windows [n, L], or tokenised rows of a table."""
    if is_classifier(loaded):
        from fas.data.table import load_table, tokenise_table

        table, tokenizer = load_table(Path(data)), loaded.need_tokenizer()
        return tokenise_table(table, tokenizer, row_length(loaded), vocab_size=loaded.vocabulary)
    from fas.data.text import windows

    return windows(tokens(loaded, data, "train"), window_of(loaded, window), limit_tokens=limit, seed=seed)


def calibration_batches(
    loaded: Loaded, data: str, *, window: int | None, limit: int, batch_size: int, seed: int
) -> list[dict[str, Any]]:
    """Return inputs of the model's forward holding about ``limit`` tokens."""
    if loaded.processor is not None:
        return _with_images(loaded, data, limit, batch_size, seed)
    if loaded.model.main_input_name != "input_ids":
        raise DataError(
            f"{loaded.name} takes {loaded.model.main_input_name}, for which the command line reads no data: "
            "pass --no-calibrate, and call fas.calibrate(model, batches) in Python"
        )
    rows = training_rows(loaded, data, window=window, limit=limit, seed=seed)
    if not is_classifier(loaded):
        from fas.data.text import batches

        found: list[dict[str, Any]] = batches(rows, batch_size)
        if loaded.model.config.is_encoder_decoder:
            # Without pairs of texts the decoder reads what the encoder reads.
            found = [{**batch, "decoder_input_ids": batch["input_ids"]} for batch in found]
    else:
        found = _padded(rows, loaded.need_tokenizer(), limit, batch_size, seed)
    device = loaded.model.device
    return [{name: tensor.to(device) for name, tensor in batch.items()} for batch in found]


def held_out_batches(
    loaded: Loaded, source: str, *, window: int | None, limit: int, batch_size: int, seed: int, new_tokens: int
) -> list[dict[str, Any]]:
    """Return inputs of about ``limit`` tokens from the test part of a text, rows of a table for a classifier.

    Args:
        loaded: the model.
        source: text source or table.
        window: tokens per row; what the model takes if None.
        limit: tokens in all.
        batch_size: rows per call.
        seed: of the choice of windows.
        new_tokens: room to leave after each row.

    Raises:
        DataError: no data, or no room for the new tokens.
    """
    if is_classifier(loaded) or loaded.model.main_input_name != "input_ids":
        return calibration_batches(loaded, source, window=window, limit=limit, batch_size=batch_size, seed=seed)
    from fas.data.text import batches, windows

    length = window_of(loaded, window)
    if loaded.context is not None:
        length = min(length, loaded.context - new_tokens)
    if length < 1:
        raise DataError(
            f"{new_tokens} new tokens leave no room for a prompt in the model's context of {loaded.context}: "
            "pass a smaller --new-tokens"
        )
    rows = windows(tokens(loaded, source, "test"), length, limit_tokens=limit, seed=seed)
    found: list[dict[str, Any]] = batches(rows, batch_size)
    if loaded.model.config.is_encoder_decoder and not new_tokens:
        found = [{**batch, "decoder_input_ids": batch["input_ids"]} for batch in found]
    return [{name: tensor.to(loaded.model.device) for name, tensor in batch.items()} for batch in found]


def _with_images(loaded: Loaded, data: str, limit: int, batch_size: int, seed: int) -> list[dict[str, Any]]:
    """Return images with the captions, or questions and answers, that the model would write."""
    import torch

    from fas.data.image_text import load_pictures, model_inputs, picture_batches

    pictures = load_pictures(data, split="train")
    rows, taken = [], 0
    for i in torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed)).tolist():
        picture = pictures[i]
        prompt, image = picture.question or "", picture.opened()
        rows.append(model_inputs(loaded.model, loaded.need_processor(), image, prompt, picture.references[0]))
        taken += rows[-1]["input_ids"].numel()
        if taken >= limit:
            break
    device = loaded.model.device
    return [{name: x.to(device) for name, x in inputs.items()} for _, inputs in picture_batches(rows, batch_size)]


def _padded(rows: Any, tokenizer: Any, limit: int, batch_size: int, seed: int) -> list[dict[str, Any]]:
    import torch

    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    found, taken = [], 0
    for start in range(0, len(order), batch_size):
        chosen = [{k: v for k, v in rows[i].items() if k != "labels"} for i in order[start : start + batch_size]]
        batch = dict(tokenizer.pad(chosen, return_tensors="pt"))
        found.append(batch)
        taken += int(batch["attention_mask"].sum())
        if taken >= limit:
            break
    return found

"""Operations of a model on held-out data: what ``fas energy`` and ``fas report`` count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fas.cli.program.output import Output
from fas.data.for_model import calibration_batches, is_classifier, tokens, window_of
from fas.errors import DataError
from fas.loading import Loaded
from fas.types import Measurement


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
        new_tokens: room to leave behind each row.

    Raises:
        DataError: no data, or no room for the new tokens.
    """
    if is_classifier(loaded) or loaded.model.main_input_name != "input_ids":
        return calibration_batches(
            loaded, source, window=window, limit=limit, batch_size=batch_size, seed=seed
        )  # fmt: skip
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


def generates(loaded: Loaded) -> bool:
    """Whether a model writes text."""
    model = loaded.model
    return not is_classifier(loaded) and bool(hasattr(model, "can_generate") and model.can_generate())


def count(output: Output, loaded: Loaded, batches: list[dict[str, Any]], new_tokens: int) -> tuple[Any, Any]:
    """Return the counts of the spiking and of the dense network, with a bar."""
    from fas.energy.estimate import count_both

    with output.progress("counting") as advance:
        return count_both(loaded.model, batches, new_tokens=new_tokens, progress=advance)


def add(output: Output, row: Measurement) -> None:
    """Take note of a row with its own origin."""
    stated = output.measure(row.quantity, row.value, row.unit, **row.conditions)
    output.measurements[-1] = replace(stated, origin=row.origin)

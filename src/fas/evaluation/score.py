"""Scoring a model on data: its scores and its spikes, as rows with their conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fas.data.for_model import is_classifier, row_length, tokens
from fas.evaluation.interval import standard_error
from fas.evaluation.kept import Kept
from fas.loading import Loaded
from fas.memory import with_fewer_rows
from fas.plain_networks import is_plain, photographs
from fas.recording import Recording, record
from fas.storage.resume import Once, directly
from fas.types import Measurement, Progress

if TYPE_CHECKING:
    from fas.data.table import Table

WINDOWS = "nll_by_window"
"""Condition with the negative log likelihood and the scored tokens of every window."""
Scored = tuple[dict[str, float], dict[str, Any]]
"""Scores by name, the chief one first, and the conditions they depend on."""


@dataclass(frozen=True)
class Scores:
    """What a model is scored on.

    Attributes:
        source: name of the data.
        batch_size: windows or rows per call, where memory is enough.
        score: returns what ``of`` returns.
        images: labelled batches, where a network of images is scored on them.
    """

    source: str
    batch_size: int
    score: Callable[[Loaded, int, Progress | None, Once], Scored]
    images: Sequence[Any] = ()

    def of(
        self, loaded: Loaded, progress: Progress | None = None, batch_size: int | None = None, once: Once = directly
    ) -> Scored:
        """Return the scores of the network that a model is set to, the chief one first, and what they depend on."""
        scores, about = self.score(loaded, batch_size or self.batch_size, progress, once)
        return scores, {"data": self.source, **about}


def scores_on(
    loaded: Loaded,
    source: str,
    *,
    split: str = "test",
    limit: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
    images: int = 1000,
) -> Scores:
    """Return what a model is scored on: perplexity on tokens, a classifier's scores on a table, accuracy on images.

    The arguments are those of ``fas.evaluate``, whose ``tokens`` are ``limit``; ``images`` counts images.

    Raises:
        DataError: text, a table or images that cannot be read.
    """
    if is_plain(loaded):
        batches = photographs(loaded, source, split, limit=images, rows=max(batch_size, 64), seed=None)
        return _on_images(source, batches, batch_size)
    if is_classifier(loaded):
        from fas.data.table import load_table

        # Whole scores look like classes; the head knows better.
        regression = loaded.model.config.num_labels == 1
        return on_table(source, load_table(source, task="regression" if regression else None), batch_size)
    stream = tokens(loaded, source, split, limit=limit)

    def score(loaded: Loaded, batch_size: int, progress: Progress | None, once: Once) -> Scored:
        from fas.evaluation.perplexity import perplexity

        found = perplexity(
            loaded.model, stream, window=window, stride=stride, bos=loaded.bos, batch_size=batch_size,
            progress=progress, once=once,
        )  # fmt: skip
        about = {"split": split, "tokens": len(stream), **found.conditions, WINDOWS: found.windows}
        return {"perplexity": found.value}, about

    return Scores(source, batch_size, score)


def on_table(source: str, table: Table, batch_size: int) -> Scores:
    """Return the rows of a table as what a classifier, or a regressor, is scored on (``classify``)."""

    def score(loaded: Loaded, batch_size: int, progress: Progress | None, once: Once) -> Scored:
        from fas.evaluation.classify import classify

        found = classify(
            loaded.model, table, loaded.need_tokenizer(), batch_size=batch_size, max_length=row_length(loaded),
            progress=progress, once=once,
        )  # fmt: skip
        return found, {"samples": len(table)}

    return Scores(source, batch_size, score)


def _on_images(source: str, batches: Sequence[Any], batch_size: int) -> Scores:
    def score(loaded: Loaded, _: int, progress: Progress | None, once: Once) -> Scored:
        from fas.evaluation.classify import classify_images

        found = classify_images(loaded.model, batches, progress=progress)
        return found, {"images": sum(len(batch["labels"]) for batch in batches)}

    return Scores(source, batch_size, score, batches)


def on_pictures(
    loaded: Loaded,
    source: str,
    *,
    images: Path | None = None,
    split: str = "test",
    limit: int | None = None,
    prompt: str = "",
    max_new_tokens: int = 32,
    batch_size: int = 8,
) -> Scores:
    """Return what a model that writes about images is scored on: captions, or answers to questions.

    The arguments are those of ``fas.evaluate``.

    Raises:
        CheckpointError: a model without a processor.
        DataError: rows that cannot be read.
    """
    from fas.data.image_text import load_pictures

    processor, pictures = loaded.need_processor(), load_pictures(source, images=images, split=split)[:limit]

    def score(loaded: Loaded, batch_size: int, progress: Progress | None, once: Once) -> Scored:
        from fas.evaluation.captions import score_pictures

        found = score_pictures(
            loaded.model, processor, pictures, prompt=prompt, max_new_tokens=max_new_tokens, batch_size=batch_size,
            progress=progress,
        )  # fmt: skip
        about = {"samples": len(pictures), "max_new_tokens": max_new_tokens}
        return found, {**about, "prompt": prompt} if prompt else about

    return Scores(source, batch_size, score)


def measure(
    loaded: Loaded,
    scores: Scores,
    *,
    kept: Kept | None = None,
    progress: Progress | None = None,
    by_window: bool = False,
    part: str = "",
    **about: Any,
) -> list[Measurement]:
    """Score a model and count its spikes.

    ``by_window`` states what every window of a text gave beside its perplexity; ``part`` tells its batches from those
    of another model in what is kept; ``about`` are further conditions to state.

    Returns:
        Every score, the chief one first, and the spikes per neuron where the network spikes.
    """
    stated = loaded.conditions
    spiking = loaded.converted and loaded.model.network == "snn"

    def scored(batch_size: int) -> tuple[Scored, Recording | None]:
        with record(loaded.model) if spiking else nullcontext() as spikes:
            once = (
                directly if kept is None else kept.within(f"{part} {scores.source} {stated}".lstrip(), lambda: spikes)
            )
            return scores.of(loaded, progress, batch_size, once), spikes

    (found, where), spikes = with_fewer_rows(scores.batch_size, scored)
    windows = where.pop(WINDOWS, ())
    stated = {**stated, **where, **about}
    rows = [Measurement(name, float(value), "1", conditions=stated) for name, value in found.items()]
    if windows:
        error = {"stderr": standard_error(windows)} if len(windows) > 1 else {}
        seen = {WINDOWS: [list(window) for window in windows]} if by_window else {}
        rows[0] = replace(rows[0], conditions={**stated, **error, **seen})
    if spikes is not None:
        rows.append(Measurement("spikes_per_neuron", spikes.spikes_per_neuron, "spikes/neuron", conditions=stated))
    return rows

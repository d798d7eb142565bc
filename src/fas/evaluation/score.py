"""Measuring a model on data: its scores and its spikes, as rows with their conditions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fas.data.for_model import is_classifier, row_length, tokens
from fas.evaluation.kept import Kept
from fas.loading import Loaded
from fas.memory import with_fewer_rows
from fas.plain_networks import is_plain, photographs
from fas.recording import record
from fas.storage.resume import Once, directly
from fas.types import Measurement, Progress

if TYPE_CHECKING:
    from fas.recording import Recording

Scored = tuple[dict[str, float], dict[str, Any]]
"""Scores by name, the chief one first, and the conditions they depend on."""


class Scores(ABC):
    """What a model is scored on.

    Attributes:
        source: name of the data.
        batch_size: windows or rows per call, where memory is enough.
    """

    source: str
    batch_size: int

    @abstractmethod
    def of(self, loaded: Loaded, batch_size: int, progress: Progress | None = None, once: Once = directly) -> Scored:
        """Return the scores of the network that a model is set to, the chief one first, and what they depend on.

        Args:
            loaded: the model.
            batch_size: windows or rows per call.
            progress: called with batches, rows or images done and in all.
            once: does every batch, or returns what an earlier run has found (see ``fas.storage.resume``).
        """

    def chief(self, loaded: Loaded, progress: Progress | None = None) -> float:
        """Return the chief score of the network that a model is set to."""
        return next(iter(self.of(loaded, self.batch_size, progress)[0].values()))


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

    Args:
        loaded: the model; also says which of these.
        source: a text source, a GLUE-style table, or folders of images.
        split: part of a data set that has parts.
        limit: use the first tokens only.
        window: tokens per window, as ``fas.evaluation.perplexity``.
        stride: new tokens per window.
        batch_size: windows or rows per call.
        images: for a network that reads these, how many.

    Raises:
        DataError: text, a table or images that cannot be read.
    """
    if is_plain(loaded):
        return ImageScores(loaded, source, split=split, images=images, batch_size=batch_size)
    if is_classifier(loaded):
        return TableScores(loaded, source, batch_size=batch_size)
    return TextScores(
        loaded, source, split=split, limit=limit, window=window, stride=stride, batch_size=batch_size
    )  # fmt: skip


class TextScores(Scores):
    """Perplexity on the tokens of a text; arguments as ``scores_on``."""

    def __init__(
        self,
        loaded: Loaded,
        source: str,
        *,
        split: str = "test",
        limit: int | None = None,
        window: int | None = None,
        stride: int | None = None,
        batch_size: int = 8,
    ) -> None:
        self.source, self.batch_size, self._split = source, batch_size, split
        self._window, self._stride = window, stride
        self.stream = tokens(loaded, source, split, limit=limit)

    def of(self, loaded: Loaded, batch_size: int, progress: Progress | None = None, once: Once = directly) -> Scored:
        """Return the perplexity, with window, stride and tokens."""
        from fas.evaluation.perplexity import perplexity

        found = perplexity(
            loaded.model, self.stream, window=self._window, stride=self._stride, bos=loaded.bos,
            batch_size=batch_size, progress=progress, once=once,
        )  # fmt: skip
        about = {"data": self.source, "split": self._split, "tokens": len(self.stream)}
        return {"perplexity": found.value}, {**about, **found.conditions}


class TableScores(Scores):
    """Scores of a classifier, or a regressor, on a GLUE-style table."""

    def __init__(self, loaded: Loaded, source: str, *, batch_size: int = 8) -> None:
        from fas.data.table import load_table

        self.source, self.batch_size = source, batch_size
        # Whole scores look like classes; the head knows better.
        regression = loaded.model.config.num_labels == 1
        self._table = load_table(Path(source), task="regression" if regression else None)

    def of(self, loaded: Loaded, batch_size: int, progress: Progress | None = None, once: Once = directly) -> Scored:
        """Return accuracy, F1 and Matthews, or the correlations of a regressor."""
        from fas.evaluation.classify import classify

        found = classify(
            loaded.model, self._table, loaded.need_tokenizer(), batch_size=batch_size,
            max_length=row_length(loaded), progress=progress, once=once,
        )  # fmt: skip
        return found, {"data": self.source, "samples": len(self._table)}


class ImageScores(Scores):
    """Accuracy of a plain network on labelled images."""

    def __init__(self, loaded: Loaded, source: str, *, split: str, images: int, batch_size: int) -> None:
        self.source, self.batch_size = source, batch_size
        self.images = photographs(loaded, source, split, limit=images, rows=max(batch_size, 64), seed=None)

    def of(self, loaded: Loaded, batch_size: int, progress: Progress | None = None, once: Once = directly) -> Scored:
        """Return the accuracy, and among the five likeliest classes where there are more."""
        from fas.evaluation.images import classify_images

        found = classify_images(loaded.model, self.images, progress=progress)
        return found, {"data": self.source, "images": sum(len(batch["labels"]) for batch in self.images)}


class PictureScores(Scores):
    """What a model that writes about images is scored on: captions, or answers to questions.

    Args:
        loaded: the model.
        source: rows of ``fas.data.image_text.load_pictures``.
        images: folder of the images, where it is not that of the rows.
        split: part of a data set that has parts.
        limit: use the first rows only.
        prompt: said in front of a caption; a pattern with ``{}`` for a question.
        max_new_tokens: at which a text is cut.
        batch_size: images per call.

    Raises:
        CheckpointError: a model without a processor.
        DataError: rows that cannot be read.
    """

    def __init__(
        self,
        loaded: Loaded,
        source: str,
        *,
        images: Path | None = None,
        split: str = "test",
        limit: int | None = None,
        prompt: str = "",
        max_new_tokens: int = 32,
        batch_size: int = 8,
    ) -> None:
        from fas.data.image_text import load_pictures

        self.source, self.batch_size = source, batch_size
        self._processor, self._prompt, self._most = loaded.need_processor(), prompt, max_new_tokens
        self._pictures = load_pictures(source, images=images, split=split)[:limit]

    def of(self, loaded: Loaded, batch_size: int, progress: Progress | None = None, once: Once = directly) -> Scored:
        """Return the scores of captions or answers."""
        from fas.evaluation.captions import score_pictures

        found = score_pictures(
            loaded.model, self._processor, self._pictures, prompt=self._prompt, max_new_tokens=self._most,
            batch_size=batch_size, progress=progress,
        )  # fmt: skip
        about = {"data": self.source, "samples": len(self._pictures), "max_new_tokens": self._most}
        return found, {**about, "prompt": self._prompt} if self._prompt else about


def measure(
    loaded: Loaded, scores: Scores, *, kept: Kept | None = None, progress: Progress | None = None, **about: Any
) -> list[Measurement]:
    """Score a model and count its spikes.

    Args:
        loaded: set to the network that is meant.
        scores: on what.
        kept: keeps the batches that are done.
        progress: called with batches, rows or images done and in all.
        about: further conditions to state.

    Returns:
        Every score, the chief one first, and the spikes per neuron where the network spikes.
    """
    stated = loaded.conditions
    spiking = loaded.converted and loaded.model.network == "snn"

    def scored(batch_size: int) -> tuple[Scored, Recording | None]:
        with record(loaded.model) if spiking else nullcontext() as spikes:
            once = directly if kept is None else kept.within(f"{stated}", lambda: spikes)
            return scores.of(loaded, batch_size, progress, once), spikes

    (found, where), spikes = with_fewer_rows(scores.batch_size, scored)
    stated = {**stated, **where, **about}
    rows = [Measurement(name, float(value), "1", conditions=stated) for name, value in found.items()]
    if spikes is not None:
        rows.append(Measurement("spikes_per_neuron", spikes.spikes_per_neuron, "spikes/neuron", conditions=stated))
    return rows

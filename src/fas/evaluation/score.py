"""Measuring one model after another on the same data: quality and spikes, relative to the dense model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fas.cli._calibration import conditions
from fas.cli._parts import Parts
from fas.cli._rows_at_a_time import with_fewer
from fas.cli.program.output import Output
from fas.data.for_model import is_classifier, row_length, tokens
from fas.loading import Loaded
from fas.plain_networks import is_plain, photographs
from fas.storage.resume import Once, directly

if TYPE_CHECKING:
    from fas.recording import Recording

Advance = Callable[[int, int], None]


class Scores:
    """What a model is scored on: perplexity on tokens, the scores of a classifier on a table, accuracy on images.

    Args:
        loaded: the model; also says which of these.
        source: a text source, a GLUE-style table, or folders of images.
        split: part of a data set that has parts.
        limit: use the first tokens only.
        window: tokens per window, as ``evaluate.perplexity``.
        stride: new tokens per window.
        batch_size: windows or rows per call.
        images: for a network that reads these, how many.

    Attributes:
        once: does every batch, or returns what an earlier run has found (see ``fas.storage.resume``).

    Raises:
        DataError: text, a table or images that cannot be read.
    """

    once: Once = staticmethod(directly)

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
        images: int = 1000,
    ) -> None:
        self.source, self.batch_size = source, batch_size
        self.window, self.stride = window, stride
        self.table: Any = None
        self.stream: Any = None
        self.images: list[Any] = []
        self.detail: dict[str, Any] = {}
        if is_plain(loaded):
            self.images = photographs(loaded, source, split, limit=images, rows=max(batch_size, 64), seed=None)
        elif is_classifier(loaded):
            from fas.data.table import load_table

            # Whole scores look like classes; the head knows better.
            regression = loaded.model.config.num_labels == 1
            self.table = load_table(Path(source), task="regression" if regression else None)
        else:
            self.stream = tokens(loaded, source, split, limit=limit)

    @property
    def about(self) -> dict[str, Any]:
        """Return what must be said of the data beside a figure."""
        size = {} if self.stream is None else {"tokens": len(self.stream)}
        if self.images:
            size = {"images": sum(len(batch["labels"]) for batch in self.images)}
        return {"data": self.source, **size, **self.detail}

    def of(self, loaded: Loaded, advance: Advance | None = None) -> dict[str, float]:
        """Return the scores of the network that a model is set to, the chief one first."""
        if self.images:
            from fas.evaluation.images import classify_images

            return classify_images(loaded.model, self.images, progress=advance)
        if self.table is not None:
            from fas.evaluation.classify import classify

            return classify(
                loaded.model,
                self.table,
                loaded.need_tokenizer(),
                batch_size=self.batch_size,
                max_length=row_length(loaded),
                progress=advance,
                once=self.once,
            )
        from fas.evaluation.perplexity import perplexity

        found = perplexity(
            loaded.model, self.stream, window=self.window, stride=self.stride, bos=loaded.bos,
            batch_size=self.batch_size, progress=advance, once=self.once,
        )  # fmt: skip
        self.detail = found.conditions
        return {"perplexity": found.value}


def measure(
    output: Output, loaded: Loaded, scores: Scores, parts: Parts | None = None, /, **about: Any
) -> tuple[dict[str, float], float | None]:
    """Score a model and count its spikes, as rows of the output.

    Args:
        output: of the command.
        loaded: set to the network that is meant.
        scores: on what.
        parts: keeps the batches that are done.
        about: further conditions to state.

    Returns:
        The scores, and the spikes per neuron (None where nothing spikes).
    """
    import fas

    spiking = loaded.converted and loaded.model.network == "snn"

    def scored(batch_size: int) -> tuple[dict[str, float], Recording | None]:
        scores.batch_size = batch_size
        with fas.record(loaded.model) if spiking else nullcontext() as spikes:
            scores.once = directly if parts is None else parts.within(f"{conditions(loaded)}", lambda: spikes)
            with output.progress("measuring") as advance:
                return scores.of(loaded, advance), spikes

    found, spikes = with_fewer(output, scores.batch_size, scored)
    stated = {**conditions(loaded), **scores.about, **about}
    for name, value in found.items():
        output.measure(name, value, "1", **stated)
    if spikes is None:
        return found, None
    output.measure("spikes_per_neuron", spikes.spikes_per_neuron, "spikes/window", **stated)
    return found, spikes.spikes_per_neuron

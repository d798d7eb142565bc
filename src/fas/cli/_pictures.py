"""Models that read images and text: scores of their captions and answers, inputs from one image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fas.evaluation.score import Advance, Scores
from fas.loading import Loaded


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
        images: Path | None,
        split: str,
        limit: int | None,
        prompt: str,
        max_new_tokens: int,
        batch_size: int,
    ) -> None:
        from fas.data.image_text import load_pictures

        self.source, self.batch_size = source, batch_size
        self._processor, self._prompt, self._most = loaded.need_processor(), prompt, max_new_tokens
        self._pictures = load_pictures(source, images=images, split=split)[:limit]

    @property
    def about(self) -> dict[str, Any]:
        """Return what must be said of the data beside a figure."""
        about = {"data": self.source, "samples": len(self._pictures), "max_new_tokens": self._most}
        return {**about, "prompt": self._prompt} if self._prompt else about

    def of(self, loaded: Loaded, advance: Advance | None = None) -> dict[str, float]:
        """Return the scores of the network that a model is set to, the chief one first."""
        from fas.evaluation.captions import score_pictures

        return score_pictures(
            loaded.model, self._processor, self._pictures, prompt=self._prompt, max_new_tokens=self._most,
            batch_size=self.batch_size, progress=advance,
        )  # fmt: skip


def image_inputs(loaded: Loaded, image: Path, prompt: str) -> dict[str, Any]:
    """Return the inputs of a model for one image and what is said to it.

    Raises:
        CheckpointError: a model without a processor.
        DataError: an image that cannot be read.
    """
    from fas.data.image_text import model_inputs, open_image

    inputs = model_inputs(loaded.model, loaded.need_processor(), open_image(image), prompt)
    return {name: x.to(loaded.model.device) for name, x in inputs.items()}

"""The errors that only this library can know about; wrong arguments raise ValueError or TypeError."""

from __future__ import annotations

import re


class FASError(Exception):
    """Root of the library's own errors: each names the object, the rule, the value and the remedy."""


class SiteError(FASError):
    """A model in which a place that must spike cannot be found, or must not be touched."""


class CalibrationError(FASError):
    """Activations or thresholds that cannot be calibrated (NaN, infinite, no data)."""


class NotCalibratedError(FASError):
    """A spiking run asked of a model whose thresholds have never been set."""


class CheckpointError(FASError):
    """A model directory that is damaged, incomplete, foreign or of another version."""


class DataError(FASError):
    """Input data that is missing, empty, too short, malformed or does not fit the model."""


class MissingExtraError(FASError):
    """An optional dependency that is not installed; the message names the extra."""


def first_sentence(error: BaseException) -> str:
    """Return the first sentence of a long message: transformers adds paragraphs of advice."""
    line = " ".join(str(error).split())
    return re.split(r"(?<=[.!])\s", line, maxsplit=1)[0][:300]

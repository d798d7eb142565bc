"""Which positions of a pass are new: keys and values behind a cache are encoded again, and have been sent before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass
class Positions:
    """Positions of a row that a pass reads.

    Attributes:
        new: those that are new.
        cached: those before them, whose keys and values a cache holds.
        tokens: new ones of all rows, those of an encoder included; images or samples where there are no tokens.
    """

    new: int = 0
    cached: int = 0
    tokens: int = 0

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> Positions:
        """Read them off the named inputs of a forward: token ids, or images; of a plain module its first tensor."""
        new = tokens = 0
        encoded = inputs.get("encoder_outputs") is not None
        read = () if encoded else ("input_ids", "inputs_embeds", "pixel_values")
        for names in (read, ("decoder_input_ids", "decoder_inputs_embeds")):
            name = next((name for name in names if isinstance(inputs.get(name), Tensor)), None)
            if name is not None:
                shape = inputs[name].shape[: 1 if name == "pixel_values" else 2]
                new, tokens = (shape[1] if len(shape) == 2 else 0), tokens + shape.numel()
        if not tokens and not any(name.endswith(("_ids", "_embeds")) for name in inputs):
            tokens = next((len(value) for value in inputs.values() if isinstance(value, Tensor) and value.ndim), 0)
        length = getattr(inputs.get("past_key_values"), "get_seq_length", int)
        return cls(new, int(length()), tokens)

    def first(self, keys: int) -> int:
        """Return the first of a module's keys that is new.

        In cross-attention all keys come with the first pass of a decoder and none later.
        """
        if self.cached == 0:
            return 0
        own = self.new <= keys <= self.new + self.cached
        return keys - self.new if own and self.new else keys

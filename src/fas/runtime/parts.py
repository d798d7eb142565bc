"""Parts of a converted model, and the whole of it, that lay time steps into the batch when they are called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from fas.layers.linear import SpikingLinear
from fas.layers.simulation import Positions, Simulation
from fas.runtime import fold

# What comes next in the method resolution order is the model's own class.
_Parent: Any = object


class Folding(_Parent):
    """A part of a converted model that may be called from outside: lays the time steps into the batch.

    In the online schedule the rows of a batch are repeated T times on the way in. A part (an encoder that
    ``generate`` calls by itself) hands its rows on as they are; the whole model reduces them.
    """

    _simulation: Simulation

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on as many rows as there are samples and steps."""
        simulation = self._simulation
        if simulation.observers and simulation.positions is None:
            with simulation.using(positions=Positions.of(self._named(args, kwargs))):
                return Folding.forward(self, *args, **kwargs)
        if not simulation.folds or simulation.steps is not None:
            return super().forward(*args, **kwargs)
        inputs = self._named(args, kwargs)
        rows, steps = self._batch_rows(inputs), simulation.timesteps
        # Qwen2-VL keeps differences of positions from one call to the next.
        owner = getattr(self, "base_model", None)
        if hasattr(owner, "rope_deltas"):
            with fold.positions_folded(owner, rows, steps):
                return self._run(inputs, rows, steps)
        return self._run(inputs, rows, steps)

    def _run(self, inputs: dict[str, Any], rows: int, steps: int) -> Any:
        with self._simulation.running(range(1, steps + 1)):
            output = super().forward(**fold.fold_inputs(inputs, rows, steps))
        return self._reduced(output, rows, steps)

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        names = list(inspect.signature(type(self).forward).parameters)[1:]
        return {**dict(zip(names, args, strict=False)), **kwargs}

    def _batch_rows(self, inputs: dict[str, Any]) -> int:
        return fold.batch_rows(inputs)

    def _reduced(self, output: Any, rows: int, steps: int) -> Any:
        return output


class Answering(Folding):
    """A part that gives one answer for all time steps, and that ``generate`` can ask for tokens."""

    config: Any
    to: Callable[..., Any]
    children: Callable[[], Iterator[Any]]
    get_output_embeddings: Callable[[], Any]
    _per_step: bool = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model as its own class does: same inputs, same kind of output."""
        simulation = self._simulation
        if not simulation.folds or simulation.steps is not None:
            return super().forward(*args, **kwargs)
        with self._answering():
            return super().forward(*args, **kwargs)

    def _reduced(self, output: Any, rows: int, steps: int) -> Any:
        if self._per_step:
            difference = self._simulation.operators == "difference"
            return fold.reduce_steps(output, rows, steps, (lambda x: x) if difference else fold.running_mean)
        return fold.reduce_steps(output, rows, steps, self._simulation.after_window)

    def _head(self) -> Any:
        """Return the output layer, None where the class names none."""
        return self.get_output_embeddings() if hasattr(self, "get_output_embeddings") else None

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Let the output layer compute the answer alone, not what it would be after every step.

        It is linear, so the mean of its outputs is its output for the mean. What stands after it must be too;
        Gemma 2 caps its logits, whose mean is then taken after the cap.
        """
        head = self._head()
        simulation = self._simulation
        capped = getattr(getattr(self, "config", None), "final_logit_softcapping", None) is not None
        if head is None or self._per_step or (capped and simulation.operators == "instant"):
            yield
            return
        with simulation.alone(), simulation.using(head=head):
            if isinstance(head, SpikingLinear):
                yield
                return
            with head.register_forward_pre_hook(lambda _, arguments: simulation.reduced(arguments[0])):
                yield

    def _supports_mm_encoder_outputs(self) -> bool:
        """Whether ``generate`` may run the vision tower by itself: online, time is in the batch of the whole only."""
        return not self._simulation.folds and super()._supports_mm_encoder_outputs()

    def _expand_inputs_for_generation(self, expand_size: int = 1, *args: Any, **kwargs: Any) -> Any:
        """Repeat inputs for every beam; transformers would part the patches of an image that it has not encoded."""
        images: dict[str, Any] = {}
        if self._simulation.folds and expand_size > 1:
            images = fold.repeated_images(kwargs, expand_size)
            kwargs = {name: value for name, value in kwargs.items() if name not in images}
        ids, inputs = super()._expand_inputs_for_generation(expand_size, *args, **kwargs)
        return ids, {**inputs, **images}

    def _reorder_cache(self, past_key_values: Any, beam_idx: Tensor) -> Any:
        """Reorder a cache for beam search: online it holds T rows for every beam."""
        steps = self._simulation.timesteps if self._simulation.folds else 1
        rows = len(beam_idx)
        index = fold.fold(beam_idx, rows, steps)
        if steps > 1:
            shift = index.new_tensor(range(steps)).repeat_interleave(rows) * rows
            index = index + shift
        parent = getattr(super(), "_reorder_cache", None)
        if parent is not None:
            return parent(past_key_values, index)
        past_key_values.reorder_cache(index)
        return past_key_values


class Writing(Answering):
    """A language model inside of a model whose own ``generate`` calls it (BLIP)."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as transformers does, one text per sample.

        Online, encoders hand on T rows of every sample, and BLIP asks for as many answers to a question.
        """
        ids, states = kwargs.get("input_ids"), kwargs.get("encoder_hidden_states")
        if self._simulation.folds and ids is not None and states is not None and len(ids) == len(states):
            kwargs["input_ids"] = ids[: len(ids) // self._simulation.timesteps]
        return super().generate(*args, **kwargs)


def parts_of(model: Any) -> list[tuple[Any, type[Folding]]]:
    """Return the parts that ``generate`` runs by themselves: encoders, and in BLIP a language model."""
    # Not at the top: transformers imports this module while it is half imported itself.
    from transformers import GenerationMixin, PreTrainedModel

    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return [(model.get_encoder(), Folding)]
    if getattr(type(model), "generate", None) in (None, GenerationMixin.generate):
        return []
    children = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    return [(child, Writing if child.can_generate() else Folding) for child in children]

"""How much an error at each channel of each site changes the answers: the diagonal of the Fisher information."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fas.errors import CalibrationError
from fas.layers.population import Population
from fas.surgery.parameters import frozen
from fas.surgery.probe import hooked, without_cache
from fas.surgery.replace import populations
from fas.training.descent import answer, check_batches, inputs_of, mask_of


def sensitivities(model: Any, batches: Sequence[Mapping[str, Tensor]], *, max_answers: int = 4096) -> dict[str, Tensor]:
    """Return S_c ≥ 0 of every channel: small errors of mean square e_c at a site cost Σ_c S_c e_c.

    The cost is KL(dense ‖ erring) per answer, in nats: to second order it is ½ eᵀ F e with the Fisher information
    F = E[g gᵀ], where g is the gradient of ln p(y) at the site and y is drawn from the dense network's own answers:
    no labels are needed. Errors of different channels and positions are taken as uncorrelated, so that its
    diagonal is enough. An answer is one row of logits (a token of a language model, a sample of a classifier);
    a single logit is the mean of a unit Gaussian. Takes the memory of a training step on one batch.

    Args:
        model: a converted model; its dense network runs.
        batches: inputs of its forward.
        max_answers: batches are taken until they hold as many.

    Returns:
        By site, (C,) float32, in nats per squared unit of the activation.

    Raises:
        CalibrationError: no batches, answers without logits, or logits that are not finite.

    Source: Theis et al. 2018 (arXiv 1801.05787), equation 5, pruning by the diagonal; Kunstner et al. 2019
    (arXiv 1905.12558) on answers drawn from the model instead of labels.
    """
    check_batches(batches)
    found = {path: torch.zeros(p.channels, device=p.v_init.device) for path, p in populations(model).items()}
    gradients: dict[str, dict[int, Tensor]] = {}
    draws, answers = torch.Generator().manual_seed(0), 0
    hooks = hooked([p.register_forward_hook(partial(_watch, gradients)) for p in populations(model).values()])
    with hooks, frozen(model), model.simulation.using(network="ann", observers=[]), torch.enable_grad():
        for batch in batches:
            if answers >= max_answers:
                break
            inputs = inputs_of(batch)
            logits = answer(model(**inputs, **without_cache(model)))
            surprise, count = _surprise(logits, mask_of(inputs, logits), draws)
            if surprise.requires_grad:
                surprise.backward()
            answers += count
            for path, parts in gradients.items():
                for gradient in parts.values():
                    found[path] += gradient.flatten(0, -2).float().square().sum(0)
            gradients.clear()
    return {path: total / (2 * max(1, answers)) for path, total in found.items()}


def _watch(gradients: dict[str, dict[int, Tensor]], module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
    """Hand on a value of its own, whose gradient is kept: others may read the tensor past the neurons."""
    assert isinstance(module, Population)
    own = output.view_as(output) if output.requires_grad else output.detach().requires_grad_()
    parts, call = gradients.setdefault(module.path, {}), id(arguments[0])

    def keep(gradient: Tensor) -> None:
        # Layers that read the same tensor share its errors, so their gradients add up before the square.
        parts[call] = parts[call] + gradient if call in parts else gradient

    own.register_hook(keep)
    return own


def _surprise(logits: Tensor, mask: Tensor | None, draws: torch.Generator) -> tuple[Tensor, int]:
    """Return −ln p of answers drawn from the model, summed, and their number."""
    rows = (logits.flatten(0, -2) if mask is None else logits[mask.bool()]).float()
    if not bool(rows.isfinite().all()):
        raise CalibrationError("the dense network yields NaN or infinite logits: check its weights and the data")
    if rows.shape[-1] == 1:
        noise = torch.randn(rows.shape, generator=draws).to(rows)
        return (rows * noise).sum(), len(rows)
    drawn = torch.multinomial(rows.detach().softmax(-1).cpu(), 1, generator=draws).squeeze(1)
    return nn.functional.cross_entropy(rows, drawn.to(rows.device), reduction="sum"), len(rows)

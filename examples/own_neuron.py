"""Write a neuron of one's own, convert with it, and see how it copes with input that is uneven over time."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import fas
from fas.types import Emission, RateNeuron


# Two methods define a neuron: one step by membrane potential, and all steps by counts, for
# F_t = floor((v_0 + x_1 + ... + x_t) / threshold). They must agree.
@dataclass(frozen=True)
class BurstIF(RateNeuron):
    """Signed integrate-and-fire with bursts of up to three spikes a step, either way."""

    signed: bool = True
    exact_when: ClassVar[Literal["even", "any"]] = "even"
    # A burst travels as one event that says how many spikes it holds.
    emission: ClassVar[Emission] = "graded"

    def step(self, current, potential, count, threshold, timesteps):
        """Advance one time step by membrane potential."""
        potential = potential + current
        wanted = count + torch.floor(potential / threshold).clamp(-3, 3)
        spikes = wanted.clamp(*self.bounds(timesteps)) - count
        return spikes, potential - threshold * spikes

    def scan(self, levels, count, timesteps):
        """Return the counts of a stretch of steps."""
        counts = []
        for level in levels:
            count = (count + (level - count).clamp(-3, 3)).clamp(*self.bounds(timesteps))
            counts.append(count)
        return torch.stack(counts)


ids = torch.randint(100, (4, 24), generator=torch.Generator().manual_seed(0))
size = {"n_embd": 32, "n_layer": 4, "n_head": 2, "vocab_size": 100, "n_positions": 32}
for name, neuron in (("signed_if", "signed_if"), ("bursts", BurstIF())):
    torch.manual_seed(1)
    model = GPT2LMHeadModel(GPT2Config(**size, initializer_range=0.2, bos_token_id=0, eos_token_id=0)).eval()
    dense = model(input_ids=ids).logits.detach()
    fas.convert(model, fas.FAS(timesteps=8, neuron=neuron), calibration=[{"input_ids": ids}])
    for schedule in ("layerwise", "online"):
        model.schedule = schedule
        with torch.no_grad(), fas.record(model) as spikes:
            error = float((model(input_ids=ids).logits - dense).norm() / dense.norm())
        print(f"{name}, {schedule}: error {error:.4f}, {spikes.spikes_per_neuron:.3f} spikes per neuron")

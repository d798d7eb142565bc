"""Count what a spiking model does for a token, estimate its energy beside dense networks, and place it on a chip."""

import torch

import fas
from fas.data.text import batches, load_documents, token_stream, windows

torch.manual_seed(0)
loaded = fas.load("embedded")
model, tokenizer = loaded.model, loaded.tokenizer
train = token_stream(load_documents("stdlib", split="train")[:20], tokenizer)
test = token_stream(load_documents("stdlib", split="test")[:2], tokenizer)
fas.convert(model, fas.FAS(timesteps=8), calibration=batches(windows(train, 128, limit_tokens=2048, seed=0), 8))

held_out = batches(windows(test, 128, limit_tokens=512, seed=0), 4)
found = fas.estimate_energy(model, held_out, new_tokens=4, prices="45nm")
for phase in found.spiking.phases:
    for accounting in ("paper", "compute", "memory"):
        values = {name: found.energy(phase, accounting, name) for name in ("snn", "snn_int8", "ann", "twin")}
        shown = ", ".join(f"{name} {value / 1e6:.2f}" for name, value in values.items() if value is not None)
        print(f"{phase}, {accounting}: µJ per token (estimated) {shown}")

for name in ("loihi2", "spinnaker2"):
    rows = fas.export(loaded, name, data="stdlib")
    total = {row.quantity: round(row.value) for row in rows if "site" not in row.conditions}
    print(f"{name}: {total['neurons']} neurons, {total['synapses']} synapses on {total['cores']} cores")
    print(f"  a token: {total['spikes']} spikes, {total['deliveries']} deliveries, {total['off_chip']} off the chip")
    print(f"  assumed: {', '.join(rows[0].conditions['assumptions'])}")

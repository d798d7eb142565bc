"""Export a model to NIR and run one block in twenty lines of numpy, spike for spike as the model."""

import json
import tempfile
from pathlib import Path

import nir
import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import OPTConfig, OPTForCausalLM

import fas
from fas.exporting.nir import export_nir

torch.manual_seed(0)
config = OPTConfig(
    hidden_size=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=100, max_position_embeddings=32,
    word_embed_proj_dim=32,
)  # fmt: skip
model = OPTForCausalLM(config).eval()
ids = torch.randint(100, (4, 16))
fas.convert(model, fas.FAS(timesteps=8, neuron="signed_if"), calibration=[{"input_ids": ids}])

folder = Path(tempfile.mkdtemp()) / "nir"
export_nir(model, folder, {"input_ids": ids})
about, traces = json.loads((folder / "export.json").read_text()), load_file(folder / "traces.safetensors")

# The second layer of the MLP. Its neurons stand in the place of the ReLU, so the layer in front belongs to the block.
block = next(entry for entry in about["blocks"] if entry["site"].endswith("fc2"))
site, nodes = block["site"], nir.read(str(folder / block["file"])).nodes

current = traces[f"{site}/received"]  # [1, rows, inputs]: layerwise, it is the same at every step
if "before" in nodes:
    current = current @ nodes["before"].weight.T + nodes["before"].bias
potential = np.broadcast_to(traces[f"{site}/v_init"], current[0].shape).copy()
trains, outputs = [], []
for _ in range(about["timesteps"]):
    potential += current[0]
    spikes = (potential >= nodes["neurons"].v_threshold).astype(np.float32)
    potential -= spikes  # reset by subtraction of the threshold, which is 1
    trains.append(spikes)
    outputs.append(spikes @ nodes["layers"].weight.T + nodes["layers"].bias)

different = int((np.stack(trains) != traces[f"{site}/spikes"]).sum())
error = float(np.abs(np.mean(outputs, 0) - traces[f"{site}/output"][0]).max())
print(
    f"{site}: {int(np.sum(trains))} spikes, {different} differ from the model's; outputs differ by {error:.1e} at most"
)
assert different == 0

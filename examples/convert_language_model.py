"""Convert the language model that comes with fas, compare it with the dense one, save it, load it, let it write."""

import tempfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import fas
from fas.data.text import batches, load_documents, token_stream, windows
from fas.evaluation.perplexity import perplexity
from fas.loading import embedded

torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(embedded()).eval()
tokenizer = AutoTokenizer.from_pretrained(embedded())

train = token_stream(load_documents("stdlib", split="train")[:20], tokenizer)
test = token_stream(load_documents("stdlib", split="test")[:2], tokenizer)[:1024]
calibration = batches(windows(train, 128, limit_tokens=2048, seed=0), 8)

dense = perplexity(model, test).value
fas.convert(model, fas.FAS(timesteps=8, coverage="linear"), calibration=calibration)
with fas.record(model) as spikes:
    spiking = perplexity(model, test).value
print(f"perplexity: dense {dense:.2f}, spiking {spiking:.2f} at T = {model.timesteps}")
print(f"{spikes.spikes_per_neuron:.2f} spikes per neuron in {len(model.sites)} sites")

with tempfile.TemporaryDirectory() as directory:
    model.save_pretrained(directory)
    loaded = AutoModelForCausalLM.from_pretrained(directory)
prompt = tokenizer("def main(", return_tensors="pt")
written = loaded.generate(**prompt, max_new_tokens=16, do_sample=False)
print(tokenizer.decode(written[0]))

"""Convert the language model that comes with fas, compare it with the dense one, save it, load it, let it write."""

import tempfile

import torch

import fas
from fas.data.text import batches, load_documents, token_stream, windows

torch.manual_seed(0)
loaded = fas.load("embedded")
model, tokenizer = loaded.model, loaded.tokenizer

train = token_stream(load_documents("stdlib", split="train")[:20], tokenizer)
calibration = batches(windows(train, 128, limit_tokens=2048, seed=0), 8)

rows = fas.evaluate(loaded, tokens=1024)
fas.convert(model, fas.FAS(timesteps=8), calibration=calibration)
rows += fas.evaluate(loaded, tokens=1024)
for row in rows:
    print(f"{row.conditions['network']}: {row.quantity} {row.value:.2f}")

with tempfile.TemporaryDirectory() as directory:
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    again = fas.load(directory)
prompt = tokenizer("def main(", return_tensors="pt")
written = again.model.generate(**prompt, max_new_tokens=16, do_sample=False)
print(tokenizer.decode(written[0]))

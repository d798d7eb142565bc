"""Serve a spiking model behind the OpenAI interface, in this process, and ask it over HTTP with the usual client."""

import tempfile
import threading
from pathlib import Path

import openai
import torch

import fas
from fas.serving import listen, server

torch.manual_seed(0)
directory = Path(tempfile.mkdtemp()) / "stdlib-snn"
loaded = fas.load("embedded")
model, tokenizer = loaded.model, loaded.tokenizer
ids = tokenizer("import os\n\n\ndef main():\n    return os.path.join('a', 'b')\n" * 20, return_tensors="pt").input_ids
fas.convert(model, fas.FAS(timesteps=8), calibration=[{"input_ids": ids[:, :256]}])
model.save_pretrained(directory)
tokenizer.save_pretrained(directory)

# On the command line: fas serve stdlib-snn --port 8000
running = server(fas.load(str(directory)), "stdlib-snn")
with listen("127.0.0.1", 0) as socket:
    thread = threading.Thread(target=running.run, kwargs={"sockets": [socket]})
    thread.start()
    with openai.OpenAI(base_url=f"http://127.0.0.1:{socket.getsockname()[1]}/v1", api_key="none") as client:
        print("models:", [entry.id for entry in client.models.list()])
        question = {"model": "stdlib-snn", "prompt": "def __init__(self", "max_tokens": 12, "temperature": 0}
        whole = client.completions.create(**question).choices[0].text
        parts = [part.choices[0].text for part in client.completions.create(**question, stream=True)]
    running.should_exit = True
    thread.join()
print(f"{len(parts)} parts streamed: {question['prompt']}{whole}")
assert "".join(parts) == whole

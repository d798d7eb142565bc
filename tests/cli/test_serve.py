"""The server: real requests on the loopback interface, whole and streamed, against what ``generate`` says."""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fas import serving as _serving
from fas.loading import Loaded, load

for package in ("fastapi", "uvicorn", "openai"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install 'fas[serve]'")


@pytest.fixture(scope="module")
def loaded(snn: Path) -> Loaded:
    found = load(str(snn))
    # A random model writes bytes that are no text, whose half letters a stream holds back.
    text = {i for letter, i in found.tokenizer.get_vocab().items() if len(letter) == 1 and letter.isascii()}
    found.model.generation_config.suppress_tokens = sorted(set(range(len(found.tokenizer))) - text)
    return found


@pytest.fixture(scope="module")
def address(loaded: Loaded) -> Iterator[str]:
    server = _serving.server(loaded, "tiny")
    with _serving.listen("127.0.0.1", 0) as opened:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        thread.start()
        yield f"http://127.0.0.1:{opened.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def ask(url: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def expected(loaded: Loaded, prompt: str, new: int) -> str:
    inputs = loaded.tokenizer(prompt, return_tensors="pt")
    found = loaded.model.generate(**inputs, max_new_tokens=new, do_sample=False)
    return loaded.tokenizer.decode(found[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("schedule", ["layerwise", "online"])
@pytest.mark.parametrize("stream", [False, True])
def test_completions(address: str, loaded: Loaded, schedule: str, stream: bool) -> None:
    loaded.model.schedule = schedule
    body = {"model": "tiny", "prompt": "12 bottles", "max_tokens": 6, "temperature": 0, "stream": stream}
    code, text = ask(f"{address}/v1/completions", body)
    assert code == 200
    parts = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: {")]
    answers = parts if stream else [json.loads(text)]
    assert "".join(answer["choices"][0]["text"] for answer in answers) == expected(loaded, "12 bottles", 6)
    assert answers[-1]["usage"]["completion_tokens"] == 6 and answers[-1]["choices"][0]["finish_reason"] == "length"
    assert len(answers) > 2 or not stream
    loaded.model.schedule = "layerwise"


def test_chat(address: str, loaded: Loaded) -> None:
    body = {"messages": [{"role": "user", "content": "beer"}], "max_tokens": 4, "temperature": 0}
    code, text = ask(f"{address}/v1/chat/completions", body)
    assert code == 400 and "chat_template is not set" in json.loads(text)["error"]["message"]
    loaded.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}:{% endfor %}"
    code, text = ask(f"{address}/v1/chat/completions", body)
    assert code == 200
    assert json.loads(text)["choices"][0]["message"]["content"] == expected(loaded, "beer:", 4)


def test_the_official_client(address: str, loaded: Loaded) -> None:
    import openai

    with openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        stream = client.completions.create(model="tiny", prompt="take 3", max_tokens=5, temperature=0, stream=True)
        assert "".join(part.choices[0].text for part in stream) == expected(loaded, "take 3", 5)


def test_other_models_are_not_loaded(address: str) -> None:
    code, text = ask(f"{address}/v1/completions", {"model": "gpt2", "prompt": "x"})
    assert code == 400 and "pinned to 'tiny'" in text
    _, text = ask(f"{address}/load_model", {"model": "gpt2"})
    assert "this server has the model 'tiny' only" in text
    # What would unload transformers' models leaves this one.
    assert ask(f"{address}/reset", {})[0] == 200
    assert ask(f"{address}/v1/completions", {"prompt": "x", "max_tokens": 1})[0] == 200


def test_the_command(run: Any, snn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Server:
        def run(self, sockets: list[socket.socket]) -> None:
            seen.append(sockets[0].getsockname())

    def server(loaded: Loaded, name: str) -> Server:
        seen.append((name, loaded.model.timesteps, loaded.model.schedule))
        return Server()

    monkeypatch.setattr(_serving, "server", server)
    told = run("serve", snn, "--port", 0, "--timesteps", 3, "--schedule", "online").stderr
    assert seen[0] == ("gpt2-snn", 3, "online") and f"127.0.0.1:{seen[1][1]}/v1, T = 3" in told


def test_what_cannot_be_served(run: Any, dense: Path, snn: Path, classifier: Path, loaded: Loaded) -> None:
    assert "is dense" in run("serve", dense, code=1).stderr
    with _serving.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}: Address already in use" in run("serve", snn, "--port", port, code=1).stderr
    with pytest.raises(Exception, match="BertForSequenceClassification, which continues no text"):
        _serving.server(load(str(classifier)), "bert")

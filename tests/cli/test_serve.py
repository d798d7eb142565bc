"""The server: real requests on the loopback interface, whole and streamed, against what ``generate`` says."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    # What would load other models, or unload this one, is not there.
    for path in ("load_model", "reset", "v1/audio/transcriptions", "v1/../load_model", "docs"):
        code, text = ask(f"{address}/{path}", {"model": "gpt2"})
        assert code == 404 and "this server has the model 'tiny' only" in text
    assert ask(f"{address}/v1/completions", {"prompt": "x", "max_tokens": 1})[0] == 200


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"max_tokens": 100_000}, "sees 64 in all"),
        ({"prompt": "x" * 300}, "sees 64 in all"),
        ({"max_tokens": 0}, "max_tokens is '0'"),
        ({"temperature": -1}, "temperature is '-1'; expected a number from 0 to 2"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_p": 0}, "top_p is '0'"),
        ({"n": 2}, "n is '2', which this server cannot do"),
        ({"echo": True}, "echo is 'True'"),
        ({"generation_config": "{}"}, "generation_config"),
        ({"model": "../../etc/passwd"}, "pinned to 'tiny'"),
        ({"prompt": ["a"]}, "prompt must be a string"),
    ],
)
def test_what_cannot_be_honoured_is_refused(address: str, body: dict[str, Any], told: str) -> None:
    code, text = ask(f"{address}/v1/completions", {"prompt": "12", **body})
    assert code == 400 and told in text


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", 400), (b"{", 400), (b"[1]", 400), (b"nul", 400), (b"\xff\xfe{}", 400), (b"[" * 100_000, 400),
        (b'{"prompt": "' + b"x" * 10_000_000 + b'"}', 413), (b'{"prompt": 1e999}', 400), (b'{"surprise": 1}', 422),
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused(address: str, raw: bytes, code: int) -> None:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 10) as wire:
        head = HEAD % len(raw)
        try:
            wire.sendall(head + raw)
        except OSError:  # it has stopped reading
            pass
        assert wire.recv(64).split()[1] == str(code).encode()
    assert ask(f"{address}/v1/completions", {"prompt": "x", "max_tokens": 1})[0] == 200


def test_an_answer_keeps_its_space_and_names_the_model_as_a_request_may(address: str, loaded: Loaded) -> None:
    _, text = ask(f"{address}/v1/completions", {"prompt": "12", "max_tokens": 3, "temperature": 0})
    answer = json.loads(text)
    assert answer["model"] == "tiny"
    assert ask(f"{address}/v1/completions", {"model": answer["model"], "prompt": "x", "max_tokens": 1})[0] == 200
    # Until the context is full where nothing is said.
    assert json.loads(ask(f"{address}/v1/completions", {"prompt": "12"})[1])["usage"]["total_tokens"] == 64


@contextmanager
def serving(loaded: Loaded, **limits: Any) -> Iterator[tuple[str, Any]]:
    server = _serving.server(loaded, "tiny", _serving.Limits(**limits))
    with _serving.listen("127.0.0.1", 0) as opened:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        thread.start()
        yield f"http://127.0.0.1:{opened.getsockname()[1]}", server
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@contextmanager
def endless(loaded: Loaded) -> Iterator[dict[str, threading.Event]]:
    """Let every generation go on until its client has gone, and say when one begins and ends."""
    events = {"begun": threading.Event(), "over": threading.Event()}
    forward = loaded.model.generate

    def generate(**named: Any) -> Any:
        events["begun"].set()
        stop = named["stopping_criteria"]
        while not stop(named["input_ids"], None).all():
            named["input_ids"] = named["input_ids"].clone()
        events["over"].set()
        return forward(**named)

    loaded.model.generate = generate
    try:
        yield events
    finally:
        del loaded.model.generate


def test_a_client_that_goes_away_ends_its_generation_and_the_queue_has_an_end(loaded: Loaded) -> None:
    body = json.dumps({"prompt": "12", "max_tokens": 8}).encode()
    request = (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        % len(body)
        + body
    )
    with serving(loaded, waiting=1, patience=0.2, body=0.2) as (address, _):
        host, port = address.removeprefix("http://").split(":")
        with endless(loaded) as events, socket.create_connection((host, int(port)), 10) as first:
            first.sendall(request)
            assert events["begun"].wait(10)
            # A slow client holds up nobody, and is told so in the end.
            with socket.create_connection((host, int(port)), 10) as slow:
                slow.sendall(request[:-5])
                assert slow.recv(64).split()[1] == b"408"
            # One may wait, until its time is over; meanwhile there is no place for another.
            with socket.create_connection((host, int(port)), 10) as second:
                second.sendall(request)
                codes = {
                    second.recv(64).split()[1],
                    *(str(ask(f"{address}/v1/completions", {"prompt": "x"})[0]).encode(),),
                }
            assert b"503" in codes and codes <= {b"503", b"429"}
            first.close()
            assert events["over"].wait(10)
        assert ask(f"{address}/v1/completions", {"prompt": "x", "max_tokens": 1})[0] == 200


def test_nobody_waits_where_nobody_may(loaded: Loaded) -> None:
    with serving(loaded, waiting=0) as (address, server):
        assert ask(f"{address}/v1/completions", {"prompt": "x", "max_tokens": 1})[0] == 200
        with endless(loaded) as events:
            first = threading.Thread(target=ask, args=(f"{address}/v1/completions", {"prompt": "x"}))
            first.start()
            assert events["begun"].wait(10)
            code, text = ask(f"{address}/v1/completions", {"prompt": "x", "max_tokens": 1})
            assert code == 429 and "try again later" in text
            # One Ctrl-C ends the server, a request that is running with it.
            server.should_exit = True
            assert events["over"].wait(5)
            first.join(5)
            assert not first.is_alive()


def test_the_token(loaded: Loaded) -> None:
    with serving(loaded, token="secret") as (address, _):
        assert ask(f"{address}/v1/models")[0] == 401
        for given, code in (("secret", 200), ("secre", 401), ("Secret", 401)):
            request = urllib.request.Request(f"{address}/v1/models", headers={"Authorization": f"Bearer {given}"})
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    assert answer.status == code
            except urllib.error.HTTPError as error:
                with error:
                    assert error.code == code


def test_the_command(run: Any, snn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Server:
        def __init__(self, ready: Callable[[], None]) -> None:
            self.ready = ready

        def run(self, sockets: list[socket.socket]) -> None:
            seen.append(sockets[0].getsockname())
            self.ready()

    def server(loaded: Loaded, name: str, limits: _serving.Limits, ready: Callable[[], None]) -> Server:
        seen.append((name, loaded.model.timesteps, loaded.model.schedule))
        assert limits == _serving.Limits(token="secret")
        return Server(ready)

    monkeypatch.setattr(_serving, "server", server)
    told = run("serve", snn, "--port", 0, "--timesteps", 3, "--schedule", "online", "--token", "secret").stderr
    assert seen[0] == ("gpt2-snn", 3, "online") and f"127.0.0.1:{seen[1][1]}/v1, T = 3" in told
    # Nobody else reaches it unless asked for.
    assert seen[1][0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("words", "open_to_others"),
    [((), False), (("--host", "0.0.0.0"), True), (("--host", "0.0.0.0", "--token", "secret"), False)],
)
def test_an_address_for_other_machines_without_a_token_is_remarked(
    run: Any, snn: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], open_to_others: bool
) -> None:
    class Server:
        def run(self, sockets: list[socket.socket]) -> None:
            pass

    monkeypatch.setattr(_serving, "server", lambda *arguments: Server())
    monkeypatch.delenv("FAS_SERVE_TOKEN", raising=False)
    told = run("serve", snn, "--port", 0, *words).stderr
    assert ("other machines may use it without a token" in " ".join(told.split())) == open_to_others


def test_what_cannot_be_served(run: Any, dense: Path, snn: Path, classifier: Path, loaded: Loaded) -> None:
    assert "is dense" in run("serve", dense, code=1).stderr
    with _serving.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}: Address already in use" in run("serve", snn, "--port", port, code=1).stderr
    with pytest.raises(Exception, match="BertForSequenceClassification, which does not generate text"):
        _serving.server(load(str(classifier)), "bert")


@pytest.mark.slow
def test_a_soak_of_clients_that_come_and_go(loaded: Loaded) -> None:
    import resource

    wanted = {i: expected(loaded, f"{i} bottles", 4) for i in range(8)}
    body = [json.dumps({"prompt": f"{i} bottles", "max_tokens": 4, "temperature": 0}).encode() for i in range(8)]
    wrong: list[Any] = []
    peaks: list[int] = []

    def client(i: int, address: str, requests: int) -> None:
        host, port = address.removeprefix("http://").split(":")
        for n in range(requests):
            if n % 5 == 4:  # sent, and gone before the answer
                with socket.create_connection((host, int(port)), 60) as wire:
                    wire.sendall(HEAD % len(body[i]) + body[i])
                continue
            code, text = ask(f"{address}/v1/completions", json.loads(body[i]))
            if code != 200 or json.loads(text)["choices"][0]["text"] != wanted[i]:
                wrong.append((code, text))

    with serving(loaded, waiting=64) as (address, _):
        for requests in (13, 25, 25):
            clients = [threading.Thread(target=client, args=(i, address, requests)) for i in range(8)]
            for thread in clients:
                thread.start()
            for thread in clients:
                thread.join()
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert wrong == []
    # The highest point of memory (KiB) has been reached before the second half.
    assert peaks[2] - peaks[1] < 4096


@pytest.mark.slow
@pytest.mark.parametrize("busy", [False, True])
def test_one_interrupt_ends_the_program_cleanly(snn: Path, busy: bool) -> None:
    command = [sys.executable, "-c", "from fas.cli.main import main; main()", "serve", str(snn), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "answers at" in line)
        host, port = line.partition("http://")[2].partition("/")[0].split(":")
        with socket.create_connection((host, int(port)), 10) as wire:
            body = b'{"prompt": "12", "max_tokens": 60, "stream": true}'
            if busy:
                wire.sendall(HEAD % len(body) + body)
                assert wire.recv(64).split()[1] == b"200"
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        assert process.stderr.read() == ""

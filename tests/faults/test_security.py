"""What a checkpoint, an export or a name could do to whoever reads it: nothing."""

from __future__ import annotations

import ast
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from fas.cli.main import app
from fas.errors import CheckpointError
from fas.loading import load
from fas.storage.card import BASE, write_card

SOURCE = Path(__file__).resolve().parents[2] / "src" / "fas"


class Marking:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return exec, (f"import pathlib; pathlib.Path({str(self.mark)!r}).write_text('run')",)


@pytest.fixture
def mark(tmp_path: Path):
    """A file that must not be there at the end."""
    place = tmp_path / "it-ran"
    yield place
    assert not place.exists(), "code of the checkpoint was run"


def edited(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_the_mark_would_be_made(tmp_path: Path) -> None:
    # A test that cannot fail proves nothing: the pickle works where somebody loads it.
    pickle.loads(pickle.dumps(Marking(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


def test_no_pickle_and_no_shell_in_the_source() -> None:
    modules = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    calls = {"eval", "exec", "compile", "__import__", "load_pickle", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
    found = []
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            where = f"{file.relative_to(SOURCE)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                found += [f"{where} {alias.name}" for alias in node.names if alias.name.split(".")[0] in modules]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in modules:
                found.append(f"{where} {node.module}")
            elif isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name in calls or name in ("os.system", "torch.save", "numpy.load", "np.load", "tarfile.extractall"):
                    found.append(f"{where} {name}")
                options = {word.arg: ast.unparse(word.value) for word in node.keywords}
                if name == "torch.load" and options.get("weights_only") != "True":
                    found.append(f"{where} torch.load without weights_only=True")
                if options.get("shell") == "True" or options.get("trust_remote_code") == "True":
                    found.append(f"{where} {name}({options})")
    assert found == []


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "weights.pkl"])
@pytest.mark.parametrize("kind", ["dense", "snn"])
def test_a_directory_with_a_pickle_is_refused(kind, file, request, run, text, tmp_path, mark) -> None:
    place = tmp_path / "model"
    shutil.copytree(request.getfixturevalue(kind), place)
    for weights in ("model.safetensors", "SHA256SUMS"):
        (place / weights).unlink(missing_ok=True)
    torch.save(Marking(mark), place / file)
    said = run("inspect", place, code=1).stderr
    assert f"{place} has its weights in {file}, a pickle, and no model.safetensors" in said
    assert "take the model as safetensors" in said
    if kind == "dense":
        assert "a pickle" in run("convert", place, tmp_path / "out", "--data", text, "--stream", code=1).stderr
    elif file == "pytorch_model.bin":
        # In Python transformers hands the file over before it is read.
        with pytest.raises(CheckpointError, match="cannot be read"):
            AutoModelForCausalLM.from_pretrained(place)


def test_a_pickle_beside_safetensors_is_not_read(dense, tmp_path, mark) -> None:
    place = tmp_path / "model"
    shutil.copytree(dense, place)
    for name in ("pytorch_model.bin", "training_args.bin", "adapter_model.bin", "optimizer.pt"):
        torch.save(Marking(mark), place / name)
    (place / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "x", "peft_type": "LORA"}))
    load(str(place))


@pytest.mark.parametrize("known", [True, False])
def test_code_of_a_checkpoint_is_not_run(known, dense, run, text, tmp_path, mark) -> None:
    place = tmp_path / "model"
    shutil.copytree(dense, place)
    code = f"open({str(mark)!r}, 'w').write('run')\nclass E: pass\ndef generate(model, **named): pass\n"
    for name in ("modeling_evil.py", "tokenization_evil.py", "custom_generate/generate.py"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(code)
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    edited(place / "config.json", auto_map={name: "modeling_evil.E" for name in names})
    edited(
        place / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_evil.E"] * 2}, tokenizer_class="E"
    )
    edited(place / "generation_config.json", custom_generate=str(place))
    if known:
        said = run("generate", place, "-p", "ab", "--max-new-tokens", 2).stderr
        assert "brings code of its own (auto_map in config.json), which is not run" in said
        return
    edited(place / "config.json", model_type="martian")
    for options in ([], ["--stream"]):
        said = run("convert", place, tmp_path / "out", "--data", text, *options, code=1).stderr
        assert "it brings code of its own, which is not run; if you trust who wrote it, load it in Python" in said


@pytest.mark.parametrize("where", ["../outside.safetensors", "{absolute}", "x.bin", ".."])
def test_an_index_that_leads_elsewhere(where, dense, run, text, tmp_path, mark) -> None:
    place = tmp_path / "model"
    shutil.copytree(dense, place)
    names = list(load_file(place / "model.safetensors"))
    (place / "model.safetensors").rename(tmp_path / "outside.safetensors")
    torch.save(Marking(mark), place / "x.bin")
    where = where.format(absolute=tmp_path / "outside.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, where)}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    for arguments in (["inspect", place], ["convert", place, tmp_path / "out", "--data", text, "--stream"]):
        said = run(*arguments, code=1).stderr
        assert f"names the file {where!r}: expected safetensors beside it, so nothing was read" in said


@pytest.mark.parametrize("name", ["pipeline", "logging", "AutoModel", "os", "__class__", "x" * 1000, 3, None, []])
def test_a_class_that_is_no_model_is_passed_over(name, dense, tmp_path) -> None:
    place = tmp_path / "model"
    shutil.copytree(dense, place)
    edited(place / "config.json", architectures=[name])
    assert type(load(str(place)).model).__name__ in ("GPT2LMHeadModel", "GPT2Model")


def test_a_damaged_checkpoint_of_training_is_no_code(snn, run, text, tmp_path, mark) -> None:
    arguments = ["finetune", snn, tmp_path / "tuned", "--data", text, "--batch-size", 2, "--window", 16, "--no-control"]

    def stopped(*arguments: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fas.saving.save", stopped)
        run(*arguments, "--max-steps", 1, code=1)
    checkpoint = tmp_path / "tuned-checkpoints" / "checkpoint-1"
    # Trainer keeps its state in files of torch.save and reads them as tensors only.
    for file in ("optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin"):
        assert (checkpoint / file).is_file()
        torch.save(Marking(mark), checkpoint / file)
    # As if training had ended before its last step: Trainer then reads all of them.
    edited(checkpoint / "trainer_state.json", global_step=0)
    ended = CliRunner().invoke(app, [str(argument) for argument in (*arguments, "--max-steps", 1)])
    assert ended.exit_code != 0 and not (tmp_path / "tuned").exists()


# Square brackets are markup to rich, escapes steer a terminal, the last one turns the direction of writing.
@pytest.mark.parametrize("name", ["a[red]x", "b[/red]", "c\x1b[31m\x1b]0;t\x07", "d\u202eexe"])
def test_names_do_not_steer_the_terminal(name, dense, snn, text, run, tmp_path) -> None:
    for source, command in ((dense, ["inspect"]), (snn, ["inspect"]), (snn, ["export", "--to", "loihi2"])):
        place = tmp_path / command[0] / name
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(source, place)
        shown = run(*command, place)
        text_shown = shown.stdout + shown.stderr
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text_shown)
        assert name[:3].isprintable() is False or name in text_shown.replace("\n", "") or "\\x1b" in text_shown
    said = run("evaluate", tmp_path / f"none{name}", "--data", text, code=1).stderr
    assert said.startswith("error: ") and not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", said)


def test_what_a_model_writes_does_not_steer_the_terminal(run, dense, monkeypatch) -> None:
    from transformers import PreTrainedTokenizerFast

    monkeypatch.setattr(PreTrainedTokenizerFast, "decode", lambda *arguments, **named: "a\x1b[2Jb\n")
    for options in (["--stream"], ["--no-stream"]):
        shown = run("generate", dense, "-p", "ab", "--max-new-tokens", 3, *options).stdout
        assert "\x1b" not in shown and "a\\x1b[2Jb" in shown


EVIL = "x\n---\nlicense: evil\n---\n<script>alert(1)</script> [a](javascript:b) | ![c](http://d)"


def test_a_card_is_one_document_and_holds_no_html(snn, tmp_path) -> None:
    import yaml

    place = tmp_path / "snn"
    shutil.copytree(snn, place)
    edited(place / "config.json", **{BASE: EVIL})
    stored = json.loads((place / "config.json").read_text())["quantization_config"]
    row = {"unit": EVIL, "origin": EVIL, "conditions": {"data": EVIL, "network": EVIL}}
    rows = [{"stage": "measure", "settings": row, "results": {name: 1.0}, "sites": {}} for name in (EVIL, "energy")]
    steps = [{"stage": EVIL, "settings": {}, "results": {}, "sites": {}}]
    edited(place / "config.json", quantization_config={**stored, "records": [*steps, *rows]})
    text = write_card(place).read_text()
    _, head, body = text.split("---\n", 2)
    assert "license" not in yaml.safe_load(head) and "base_model" not in yaml.safe_load(head)
    assert "<script" not in body and "\n---\n" not in body
    assert not re.search(r"(?<!\\)\[(a|c)\]\(", body)


@pytest.mark.parametrize("name", ["X\nimport os", "a b", "", 3, "../x"])
def test_a_card_shows_no_class_that_is_none(name, snn, tmp_path) -> None:
    place = tmp_path / "snn"
    shutil.copytree(snn, place)
    edited(place / "config.json", architectures=[name])
    with pytest.raises(CheckpointError, match=r"names the class .*, which is not the name of a class"):
        write_card(place)


@pytest.fixture(scope="session")
def nir(run, snn, text, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("export") / "nir"
    run("export", snn, "--to", "nir", "--out", place, "--data", text)
    return place


@pytest.mark.parametrize("name", ["../evil.nir", "/etc/passwd", "", "..", 3, None])
def test_an_export_that_names_a_file_elsewhere(name, nir, tmp_path) -> None:
    from fas.exporting.nir import import_nir

    shutil.copytree(nir, tmp_path / "nir")
    sidecar = json.loads((tmp_path / "nir" / "export.json").read_text())
    sidecar["blocks"][0]["file"] = name
    (tmp_path / "nir" / "export.json").write_text(json.dumps(sidecar))
    with pytest.raises(CheckpointError, match="expected one beside it"):
        import_nir(tmp_path / "nir")


@pytest.mark.parametrize("kind", ["link", "external", "virtual"])
def test_an_export_that_has_its_data_elsewhere(kind, nir, tmp_path) -> None:
    import h5py

    from fas.exporting.nir import import_nir

    shutil.copytree(nir, tmp_path / "nir")
    file = next((tmp_path / "nir").glob("*.nir"))
    (tmp_path / "secret").write_bytes(bytes(64))
    with h5py.File(file, "r+") as opened:
        node = opened["node/nodes/layers"]
        del node["bias"]
        if kind == "link":
            node["bias"] = h5py.ExternalLink(str(next(nir.glob("*.nir"))), "node/nodes/layers/bias")
        elif kind == "external":
            node.create_dataset("bias", (16,), "float32", external=[(str(tmp_path / "secret"), 0, 64)])
        else:
            layout = h5py.VirtualLayout((16,), "float32")
            layout[:] = h5py.VirtualSource(str(next(nir.glob("*.nir"))), "node/nodes/layers/bias", (16,))
            node.create_virtual_dataset("bias", layout)
    with pytest.raises(CheckpointError, match="nothing was read"):
        import_nir(tmp_path / "nir")

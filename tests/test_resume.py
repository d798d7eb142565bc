"""Commands that are killed at random moments and run again end as if nothing had happened."""

import json

import forked
import pytest
import tiny_cnns
import torch
from safetensors.torch import load_file
from tiny_models import FAMILIES
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import fas
from fas import registry
from fas.conversion import calibrate, convert
from fas.layers.population import Population
from fas.methods.fas import FAS

WORDS = [f"w{i}" for i in range(30)]
COMMANDS = {
    "convert": "convert {root}/dense {out} --overwrite --data {root}/text.txt --tokens 96 --window 12 --batch-size 2",
    "calibrate": "calibrate {root}/snn {out} --overwrite --data {root}/text.txt --tokens 96 --window 12 --timesteps 3",
    "finetune": "finetune {root}/snn {out} --overwrite --data {root}/text.txt --window 12 --batch-size 2 --max-steps 8",
    "evaluate": "evaluate {root}/snn --data {root}/text.txt --timesteps 2,3,4,5,6 --window 12 --json",
    "export": "export {root}/snn --out {out} --to fixed-point --data {root}/text.txt --window 12",
}
# One process that forks: torch takes seconds to import. Each child is killed at a random moment of its work.
_KILLER = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
import fas, fas.stages.finetune, fas.stages.calibrate, fas.exporting.fixed_point, transformers
from fas.cli.main import main

line, root, (trials, seed, kills) = sys.argv[1], sys.argv[2], map(int, sys.argv[3:])


def start(name):
    child = os.fork()
    if child == 0:
        shown = os.open(f"{root}/{line.split()[0]}-{name}.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(shown, 1)
        try:
            main(line.format(root=root, out=f"{root}/{line.split()[0]}-{name}").split())
        except SystemExit as done:
            os._exit(done.code or 0)
    return child


began = time.perf_counter()
assert os.waitpid(start("whole"), 0)[1] == 0
usual = time.perf_counter() - began
moments = random.Random(seed)
killed = 0
for trial in range(trials):
    for attempt in range(kills):
        child = start(str(trial))
        time.sleep(moments.uniform(0.1, 0.7) * usual)
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    # A child that was not caught has finished; what it has written is replaced.
    assert os.waitpid(start(str(trial)), 0)[1] == 0
print(killed)
"""


@pytest.fixture
def root(tmp_path):
    """A dense model with a tokenizer, the same converted, and text."""
    root = tmp_path
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0")
    model = FAMILIES["gpt2"].build()
    for name in ("dense", "snn"):
        if name == "snn":
            convert(model, FAS(timesteps=4), calibration=[{"input_ids": torch.arange(24).view(2, 12)}])
        model.save_pretrained(root / name)
        words.save_pretrained(root / name)
    chosen = torch.randint(0, 30, (400,), generator=torch.Generator().manual_seed(1)).tolist()
    (root / "text.txt").write_text(" ".join(WORDS[i] for i in chosen))
    return root


def contents(path):
    """What a command has written: tensors bit by bit, JSON without the seconds that it took."""
    found = {}
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        name = str(file.relative_to(path))
        if file.suffix == ".safetensors":
            found[name] = {k: (x.dtype, x.view(torch.uint8).tolist()) for k, x in load_file(file).items()}
        elif file.suffix == ".json":
            found[name] = _timeless(json.loads(file.read_text()))
        elif file.is_file():
            found[name] = None
    return found


def _timeless(value):
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if not k.endswith("seconds")}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def kill(root, command, trials, kills, seed):
    arguments = [COMMANDS[command], str(root), str(trials), str(seed), str(kills)]
    cache = root / "cache"
    done = forked.run(_KILLER, *arguments, XDG_CACHE_HOME=cache)
    assert done.returncode == 0, done.stderr[-3000:]
    # What evaluation finds, it prints.
    ending = ".json" if command == "evaluate" else ""
    expected = contents(root / f"{command}-whole{ending}")
    assert expected
    for trial in range(trials):
        assert contents(root / f"{command}-{trial}{ending}") == expected
    assert not list(root.glob("*.calibrating")) and not list(cache.glob("*/*"))
    return int(done.stdout)


# Every moment at which something appears, moves or goes while a model takes the place of the one it is made of.
_MOMENTS = """
import os, shutil, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import fas, fas.stages.calibrate, transformers
from fas.cli.main import main

root, step = sys.argv[1], int(sys.argv[2])


def start(place, last):
    child = os.fork()
    if child == 0:
        os.dup2(os.open(f"{place}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        moments = 0

        def mortal(function):
            def called(*arguments, **named):
                global moments
                if place in str(arguments[0]) or "dir_fd" in named:
                    moments += 1
                    if moments == last:
                        os.kill(os.getpid(), signal.SIGKILL)
                result = function(*arguments, **named)
                if str(arguments[0]) == "command":
                    # The last trace of the command: killed behind this it has done its work, and a second run is one.
                    moments = 1 << 30
                return result

            return called

        globals()["moments"] = 0
        for name in ("rename", "replace", "unlink", "rmdir", "link"):
            setattr(os, name, mortal(getattr(os, name)))
        try:
            main(f"calibrate {place} --data {root}/text.txt --tokens 96 --window 12 --timesteps 3".split())
        except SystemExit as done:
            os._exit(done.code or 0)
    return os.waitpid(child, 0)[1]


last, dead = 1, True
while dead:
    # The same name each time: a model card states it.
    place = f"{root}/in/place"
    shutil.rmtree(f"{root}/in", ignore_errors=True)
    shutil.copytree(f"{root}/snn", place)
    dead = os.WIFSIGNALED(start(place, last))
    assert not dead or start(place, None) == 0
    shutil.copytree(f"{root}/in", f"{root}/in-{last}")
    last += step
print(last - step)
"""


def test_calibration_goes_on_behind_the_sites_that_are_done(tmp_path, monkeypatch):
    batches = [FAMILIES["llama"].batch(padded=True), FAMILIES["llama"].batch(rows=2, length=9, seed=5)]

    def calibrated(**options):
        model = convert(FAMILIES["llama"].build(), FAS(timesteps=4, coverage="linear"))
        calibrate(model, batches, **options)
        return model

    whole = calibrated().state_dict()
    stopped = []

    def stop(path, done, total):
        stopped.append(path)
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrated(keep=tmp_path / "kept", progress=stop)
    assert len(list((tmp_path / "kept").glob("calibration-*.safetensors"))) == 5
    fitted = []
    fit = fas.stages.calibrate.Calibrate._fit
    monkeypatch.setattr(
        fas.stages.calibrate.Calibrate, "_fit", lambda self, p, *a: fitted.append(p.path) or fit(self, p, *a)
    )
    again = calibrated(keep=tmp_path / "kept")
    assert all(torch.equal(value, whole[name]) for name, value in again.state_dict().items())
    assert fitted and not set(fitted) & set(stopped)
    assert again.records[-1].sites.keys() == {site.path for site in again.sites}


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def start(method):
    """A dense network that the method takes, with a probe and batches for it."""
    if issubclass(method, FAS):
        return FAMILIES["gpt2"].build(), None, [FAMILIES["gpt2"].batch(), FAMILIES["gpt2"].batch(seed=2)]
    batches = [{"x": tiny_cnns.images(4, size=10, seed=seed).double()} for seed in range(2)]
    return tiny_cnns.chain(), {"x": batches[0]["x"][:1]}, batches


@pytest.mark.parametrize("error", [Killed, MemoryError])
@pytest.mark.parametrize("name", registry.available("methods"))
def test_the_calibration_of_every_method_resumes(name, error, tmp_path, monkeypatch):
    method = registry.load("methods", name)
    calls = []
    for work in ("forward", "set"):
        original = getattr(Population, work)
        monkeypatch.setattr(Population, work, lambda self, *x, _do=original: calls.append(self) or _do(self, *x))

    def calibrated(**options):
        model, probe, batches = start(method)
        model = convert(model, method(timesteps=3), probe=probe)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        calls.clear()
        try:
            calibrate(model, batches, **options)
        except error:
            # What a caller holds is what the first unfinished stage began with.
            if len(method(timesteps=3).stages()) == 1:
                after = model.state_dict()
                assert all(torch.equal(value.isnan(), after[key].isnan()) for key, value in before.items())
                assert all(torch.equal(value.nan_to_num(), after[key].nan_to_num()) for key, value in before.items())
            raise
        return model

    parts = []

    def ending(last):
        """Ends the calibration at a part of the whole one; those that are found done may not be told again."""
        wanted, told = parts[last], []

        def progress(*part):
            told.append(part)
            if told.count(wanted) == parts[: last + 1].count(wanted):
                raise error

        return progress

    whole = calibrated(progress=lambda *part: parts.append(part))
    usual = len(calls)
    for last in (len(parts) // 2, len(parts) - 1):
        with pytest.raises(error):
            calibrated(keep=tmp_path / "kept", progress=ending(last))
    again = calibrated(keep=tmp_path / "kept")
    assert len(calls) < usual
    for key, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert [record.sites for record in again.records] == [record.sites for record in whole.records]


def test_sites_of_another_calibration_are_not_taken(tmp_path, caplog):
    batches = [FAMILIES["gpt2"].batch()]
    model = convert(FAMILIES["gpt2"].build(), FAS(timesteps=4))
    calibrate(model, batches, keep=tmp_path / "kept")
    other = convert(FAMILIES["gpt2"].build(), FAS(timesteps=4))
    with caplog.at_level("WARNING", logger="fas"):
        calibrate(other, [FAMILIES["gpt2"].batch(seed=9)], keep=tmp_path / "kept")
    assert "was begun by another run: its data is " in caplog.text
    alone = convert(FAMILIES["gpt2"].build(), FAS(timesteps=4))
    calibrate(alone, [FAMILIES["gpt2"].batch(seed=9)])
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), alone.state_dict().values(), strict=True))


def test_a_killed_calibration_ends_alike(root):
    assert kill(root, "calibrate", trials=1, kills=2, seed=0) >= 1


@pytest.mark.parametrize("step", [61, pytest.param(3, marks=pytest.mark.slow)])
def test_a_model_is_replaced_by_itself_at_whatever_moment_it_is_killed(root, step):
    done = forked.run(_MOMENTS, root, step)
    assert done.returncode == 0, done.stderr[-3000:]
    last = int(done.stdout)
    expected = contents(root / f"in-{last}")
    assert len(expected["place/config.json"]["quantization_config"]["records"]) == 2 and last > 37
    for moment in range(1, last, step):
        found = contents(root / f"in-{moment}")
        assert found == expected, (moment, found.keys() ^ expected.keys())


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_dozens_of_times(root, command):
    assert kill(root, command, trials=8, kills=3, seed=1) >= 12

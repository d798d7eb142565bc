"""Streaming a checkpoint: the same model as in memory, and the same again however often it is killed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_models import FAMILIES, logits

import fas
from fas import streaming
from fas.errors import CheckpointError, FASError, SiteError
from fas.storage.sharded import Sharded
from fas.streaming import stream
from fas.surgery.replace import populations

STREAMED = ("gpt2", "opt", "llama", "gemma3", "bloom", "bert_mlm", "vit")


def dense(directory, name="opt", *, dtype=torch.float32, **options):
    """A checkpoint in several shards."""
    FAMILIES[name].build(**options).to(dtype).save_pretrained(directory, max_shard_size=30_000)
    return directory


def batches(name="opt"):
    return [FAMILIES[name].batch(padded=True), FAMILIES[name].batch(rows=2, length=11, seed=5)]


def load(directory, name="opt"):
    return getattr(transformers, FAMILIES[name].auto).from_pretrained(directory)


def in_memory(source, method, name="opt"):
    return fas.convert(load(source, name), method, calibration=batches(name))


def assert_equal(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    assert {key: x.dtype for key, x in ours.items()} == {key: x.dtype for key, x in theirs.items()}


# Full coverage holds the sites of the others; BLOOM computes attention by itself.
@pytest.mark.parametrize(
    ("name", "coverage"),
    [*((name, "full" if name != "bloom" else "linear") for name in STREAMED), ("opt", "mlp"), ("gpt2", "linear")],
)
def test_streaming_equals_memory(name, coverage, tmp_path):
    source, method = dense(tmp_path / "dense", name), fas.FAS(timesteps=4, coverage=coverage)
    model = in_memory(source, method, name)
    (record,) = stream(source, tmp_path / "out", method, calibration=batches(name))
    loaded = load(tmp_path / "out", name)
    assert_equal(loaded, model)
    assert loaded.sites == model.sites and loaded.fas_config.recipe == model.fas_config.recipe
    assert record.sites == model.records[0].sites == loaded.records[0].sites
    assert torch.equal(logits(loaded, batches(name)[0]), logits(model, batches(name)[0]))
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(("name", "tied"), [("gpt2", True), ("opt", True), ("opt", False), ("llama", False)])
def test_tied_embeddings(name, tied, tmp_path):
    # OPT's inner width differs from that of its embeddings in these tests: there a layer stands between.
    source = dense(tmp_path / "dense", name, tie_word_embeddings=tied)
    model = in_memory(source, fas.FAS(timesteps=4), name)
    stream(source, tmp_path / "out", fas.FAS(timesteps=4), calibration=batches(name))
    loaded = load(tmp_path / "out", name)
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) == tied
    assert_equal(loaded, model)


def test_a_model_that_knows_its_padding(tmp_path):
    # transformers looks for it among the ids of a probe, which are not there without memory.
    source = dense(tmp_path / "dense", "gpt2", pad_token_id=1)
    model = in_memory(source, fas.FAS(timesteps=4), "gpt2")
    stream(source, tmp_path / "out", fas.FAS(timesteps=4), calibration=batches("gpt2"))
    assert_equal(load(tmp_path / "out", "gpt2"), model)


def test_excluded_layers_and_blocks(tmp_path):
    source, method = dense(tmp_path / "dense"), fas.FAS(timesteps=4, exclude=("lm_head", "*.layers.0.*"))
    stream(source, tmp_path / "out", method, calibration=batches())
    assert_equal(load(tmp_path / "out"), in_memory(source, method))


def test_thresholds_by_maximum(tmp_path):
    source, method = dense(tmp_path / "dense"), fas.FAS(timesteps=4, coarse=False, fine=False)
    stream(source, tmp_path / "out", method, calibration=batches())
    assert_equal(load(tmp_path / "out"), in_memory(source, method))


def test_half_precision_weights_stay_as_they_are_and_compute_in_float32(tmp_path):
    source = dense(tmp_path / "dense", dtype=torch.bfloat16)
    stream(source, tmp_path / "out", fas.FAS(timesteps=4), calibration=batches())
    loaded, before = load(tmp_path / "out"), load(source)
    assert loaded.dtype == before.dtype == torch.bfloat16
    model = fas.convert(before.float(), fas.FAS(timesteps=4), calibration=batches())
    for name, value in loaded.state_dict().items():
        expected = model.state_dict()[name]
        # bfloat16 to float32 and back is exact.
        assert torch.equal(value, expected.to(value.dtype)), name
    assert all(p.log_threshold.dtype == torch.float32 for p in populations(loaded).values())


def test_hidden_states_beyond_the_budget_come_from_the_disk(tmp_path, monkeypatch):
    from fas.calibration import residence

    read, original = [], residence.load_file
    monkeypatch.setattr(residence, "load_file", lambda file: read.append(file) or original(file))
    source = dense(tmp_path / "dense")
    for budget in (0, 1 << 30):
        read.clear()
        stream(source, tmp_path / f"out{budget}", fas.FAS(timesteps=4), calibration=batches(), budget=budget)
        assert bool(read) == (budget == 0)
    assert_equal(load(tmp_path / "out0"), load(tmp_path / f"out{1 << 30}"))


def test_one_block_is_in_memory_at_a_time(tmp_path, monkeypatch):
    source, most = dense(tmp_path / "dense", num_hidden_layers=6), 0
    original = Sharded.load

    def watching(self, names):
        nonlocal most
        original(self, names)
        held = {n.split(".layers.")[1][0] for n, p in self.model.named_parameters()
                if ".layers." in n and n in self.index and p.device.type != "meta"}  # fmt: skip
        most = max(most, len(held))

    monkeypatch.setattr(Sharded, "load", watching)
    stream(source, tmp_path / "out", fas.FAS(timesteps=4), calibration=batches())
    assert most == 1


def test_progress_and_estimate(tmp_path):
    told, sites = [], []
    stream(
        dense(tmp_path / "dense"), tmp_path / "out", fas.FAS(timesteps=4), calibration=batches(),
        told=told.append, progress=lambda *what: sites.append(what),
    )  # fmt: skip
    assert [(block.path, block.done, block.total) for block in told] == [
        (f"model.decoder.layers.{i}", i + 1, 2) for i in range(2)
    ]
    # With one of two done the other is expected to take as long.
    assert told[0].remaining == told[0].seconds > 0 and told[1].remaining == 0
    assert told[0].peak > 2**20 and [done for _, done, _ in sites] == list(range(1, len(sites) + 1))


@pytest.mark.parametrize(
    ("name", "message"),
    [("t5", "its decoder reads what its encoder returns"), ("albert", "runs several times in a pass")],
)
def test_models_that_do_not_come_apart(name, message, tmp_path):
    with pytest.raises(SiteError, match=f"cannot be streamed: .*{message}.*Convert it in memory"):
        stream(dense(tmp_path / "dense", name), tmp_path / "out", calibration=batches(name))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{"rotate": True}, {"gated": True}])
def test_methods_that_need_the_whole_model(options, tmp_path):
    with pytest.raises(ValueError, match="needs the model as a whole: streaming takes one stage"):
        stream(dense(tmp_path / "dense"), tmp_path / "out", fas.FAS(**options), calibration=batches())


def test_nan_weights_are_named(tmp_path):
    model = FAMILIES["opt"].build()
    with torch.no_grad():
        model.model.decoder.layers[1].fc1.weight[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "dense")
    with pytest.raises(CheckpointError, match=r"model\.decoder\.layers\.1\.fc1\.weight of .* has 1 NaN"):
        stream(tmp_path / "dense", tmp_path / "out", fas.FAS(timesteps=4), calibration=batches())
    # What is done stays for a run with the same weights; nothing pretends to be the result.
    assert not (tmp_path / "out").exists()


def test_a_converted_source(tmp_path):
    stream(dense(tmp_path / "dense"), tmp_path / "out", fas.FAS(timesteps=4), calibration=batches())
    with pytest.raises(CheckpointError, match="converted or quantised already"):
        stream(tmp_path / "out", tmp_path / "again", calibration=batches())


class Interrupted(Exception):
    pass


def interrupt(source, out, method, behind=1, **options):
    """Begin, and end behind some blocks."""

    def told(block):
        if block.done == behind:
            raise Interrupted

    with pytest.raises(Interrupted):
        stream(source, out, method, calibration=batches(), told=told, **options)


@pytest.mark.parametrize("behind", [1, 2])
def test_an_interrupted_run_goes_on(behind, tmp_path):
    source, method, told = dense(tmp_path / "dense"), fas.FAS(timesteps=4), []
    interrupt(source, tmp_path / "out", method, behind)
    (record,) = stream(source, tmp_path / "out", method, calibration=batches(), told=told.append)
    assert [block.done for block in told] == list(range(behind + 1, 3))
    model = in_memory(source, method)
    assert_equal(load(tmp_path / "out"), model)
    assert record.sites == model.records[0].sites


@pytest.mark.parametrize("what", ["timesteps", "calibration data", "source files"])
def test_the_leftovers_of_another_run_are_refused(what, tmp_path):
    source, method = dense(tmp_path / "dense"), fas.FAS(timesteps=4)
    interrupt(source, tmp_path / "out", method)
    data = batches()
    if what == "timesteps":
        method = fas.FAS(timesteps=5)
    elif what == "source files":
        dense(source, num_hidden_layers=3)
    else:
        data[0]["input_ids"][0, 0] += 1
    with pytest.raises(FASError, match=f"begun by another run: its {what} is .*resume it with the same command"):
        stream(source, tmp_path / "out", method, calibration=data)


def test_interrupted_while_the_work_is_cleared_away(tmp_path, monkeypatch):
    source, method, told = dense(tmp_path / "dense"), fas.FAS(timesteps=4), []
    put = streaming.put

    def interrupted(*arguments):
        put(*arguments)
        raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(streaming, "put", interrupted)
        stream(source, tmp_path / "out", method, calibration=batches())
    assert (tmp_path / "out.partial").exists()
    (record,) = stream(source, tmp_path / "out", method, calibration=batches(), told=told.append)
    assert told == [] and record == load(tmp_path / "out").records[0]
    assert not (tmp_path / "out.partial").exists()


def test_a_converted_model_in_the_place_is_replaced(tmp_path):
    source = dense(tmp_path / "dense")
    for timesteps in (3, 4):
        stream(source, tmp_path / "out", fas.FAS(timesteps=timesteps), calibration=batches())
    assert_equal(load(tmp_path / "out"), in_memory(source, fas.FAS(timesteps=4)))
    assert load(tmp_path / "out").timesteps == 4


def test_what_a_killed_run_was_writing_is_removed(tmp_path):
    source, method = dense(tmp_path / "dense"), fas.FAS(timesteps=4)
    interrupt(source, tmp_path / "out", method)
    half = tmp_path / "out.partial" / "model" / ".README.md.0bbfd16a-13758.tma6jaqr"
    half.mkdir()
    (half / "README.md").write_text("half")
    half.with_name("model-00001-of-00009.safetensors.beside").write_bytes(b"half")
    stream(source, tmp_path / "out", method, calibration=batches())
    assert_equal(load(tmp_path / "out"), in_memory(source, method))
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".") or "beside" in path.name]


def test_a_damaged_journal(tmp_path):
    source, method = dense(tmp_path / "dense"), fas.FAS(timesteps=4)
    interrupt(source, tmp_path / "out", method)
    (tmp_path / "out.partial" / "journal.jsonl").write_text("{")
    with pytest.raises(FASError, match=r"journal\.jsonl is damaged: remove"):
        stream(source, tmp_path / "out", method, calibration=batches())


# One process that forks: torch takes seconds to import. Each child is killed at a random moment of its work.
_KILLER = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import fas
from fas import streaming
from fas.streaming import stream
from tiny_models import FAMILIES

root, trials, seed = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
batches = [FAMILIES["opt"].batch(padded=True), FAMILIES["opt"].batch(rows=2, length=11, seed=5)]


def run(out):
    stream(f"{root}/dense", out, fas.FAS(timesteps=4), calibration=batches, budget=2000)


def start(out):
    child = os.fork()
    if child == 0:
        run(out)
        os._exit(0)
    return child


# In this process, so that every child finds imported what it needs.
run(f"{root}/whole")
began = time.perf_counter()
assert os.waitpid(start(f"{root}/second"), 0)[1] == 0
usual = time.perf_counter() - began
moments = random.Random(seed)
killed = 0
for trial in range(trials):
    for attempt in range(4):
        child = start(f"{root}/{trial}")
        time.sleep(moments.uniform(0, 1.1 * usual))
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert os.waitpid(start(f"{root}/{trial}"), 0)[1] == 0
print(killed)
"""


def contents(directory):
    """Every file: tensors bit by bit, and JSON without the seconds that a run took."""
    found = {}
    for file in sorted(directory.iterdir()):
        if file.suffix == ".safetensors":
            found[file.name] = {k: (x.dtype, x.view(torch.uint8).tolist()) for k, x in load_file(file).items()}
        elif file.suffix == ".json":
            found[file.name] = json.loads(file.read_text())
            for record in found[file.name].get("quantization_config", {}).get("records", ()):
                for name in [name for name in record["results"] if name.endswith("seconds")]:
                    del record["results"][name]
        else:
            found[file.name] = None
    return found


def kill(root, trials, seed):
    dense(root / "dense", num_hidden_layers=4)
    arguments = [str(Path(__file__).parent), str(root), str(trials), str(seed)]
    done = subprocess.run([sys.executable, "-c", _KILLER, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = contents(root / "whole")
    results = ["second", *map(str, range(trials))]
    for name in results:
        assert contents(root / name) == expected
    # Neither the folder of an unfinished run nor files beside a result.
    assert {path.name for path in root.iterdir()} == {"dense", "whole", *results}
    return int(done.stdout)


def test_killed_at_random_points(tmp_path):
    # Some come when the work is done; one must not, or nothing is tested.
    assert kill(tmp_path, trials=1, seed=0) >= 1


@pytest.mark.slow
def test_killed_dozens_of_times(tmp_path):
    assert kill(tmp_path, trials=24, seed=1) >= 48

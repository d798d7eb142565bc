"""Two processes over gloo against one: the same thresholds, the same weights, the same losses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
import work

HERE = Path(__file__).parent
FAS = Path(sys.executable).with_name("fas")
SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "GPT2Block",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")


def launch(*arguments, processes=2, **environment):
    """Run a program in several processes on this machine; return how it ended."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip


def same(model, file):
    """Whether a file holds the very tensors of a model."""
    stored = load_file(file)
    return all(torch.equal(stored[name], value) for name, value in model.state_dict().items())


def losses(run):
    """Return the logged losses of a run."""
    state = json.loads((run / "checkpoint-4" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process finds: calibrated and tuned model, control, directory of the run."""
    directory, calibrated = tmp_path_factory.mktemp("alone"), work.calibrated()
    model = work.calibrated()
    # A step of two processes is one of two accumulated passes: halves of sums of two are exact.
    _, control = work.tuned(model, directory, batch_size=4, accumulation=2)
    return calibrated, model, control, directory


@pytest.mark.slow
def test_two_processes_find_what_one_finds(alone, tmp_path):
    ended = launch(HERE / "work.py", tmp_path)
    assert ended.returncode == 0, ended.stderr[-3000:]
    calibrated, model, control, directory = alone
    assert same(calibrated, tmp_path / "calibrated.safetensors")
    assert same(model, tmp_path / "tuned.safetensors") and same(control, tmp_path / "control.safetensors")
    assert losses(tmp_path / "run") == losses(directory)


@pytest.mark.slow
def test_three_processes_calibrate_alike(tmp_path):
    # Three batches, one each; stage 1 then has another global batch and is not compared.
    ended = launch(HERE / "work.py", tmp_path, processes=3)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert same(work.calibrated(), tmp_path / "calibrated.safetensors")


@pytest.mark.slow
def test_sharded_weights_train_alike(alone, tmp_path):
    ended = launch(HERE / "shard.py", tmp_path, **SHARDED)
    assert ended.returncode == 0, ended.stderr[-3000:]
    _, model, _, directory = alone
    # The norm of the gradient is summed in another order: float32 rounding of its scale, four steps of at most 1e-3.
    assert losses(tmp_path / "run") == pytest.approx(losses(directory), rel=1e-5)
    stored = load_file(tmp_path / "tuned.safetensors")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(stored[name], value, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_lost_process_ends_the_run_which_then_continues(alone, tmp_path):
    ended = launch(HERE / "work.py", tmp_path, "--lost")
    assert ended.returncode != 0 and "SIGKILL" in ended.stderr
    assert (tmp_path / "run" / "checkpoint-2").is_dir() and not (tmp_path / "tuned.safetensors").exists()
    again = launch(HERE / "work.py", tmp_path, "--lost")
    assert again.returncode == 0, again.stderr[-3000:]
    assert same(alone[1], tmp_path / "tuned.safetensors") and same(alone[2], tmp_path / "control.safetensors")


@pytest.mark.slow
def test_commands_share_their_work(tmp_path):
    options = ["--timesteps", "4", "--tokens", "1024", "--window", "64", "--batch-size", "4"]
    for processes, name in ((1, "one"), (2, "two")):
        ended = launch("--no-python", FAS, "convert", "embedded", tmp_path / name, *options, processes=processes)
        assert ended.returncode == 0, ended.stderr[-3000:]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert ended.stdout.count("worst site") == 1
    ended = launch("--no-python", FAS, "evaluate", "embedded")
    assert ended.returncode != 0 and "runs in one process" in ended.stderr


def test_blocks_on_the_disk_answer_alike(tmp_path):
    from transformers import AutoModelForCausalLM

    model = work.calibrated()
    model.save_pretrained(tmp_path / "snn")
    device_map = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.ln_f": "cpu", "lm_head": "cpu",
                  "transformer.h.0": "cpu", "transformer.h.1": "disk"}  # fmt: skip
    spread = AutoModelForCausalLM.from_pretrained(
        tmp_path / "snn", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    assert spread.network == "snn"
    with torch.no_grad():
        assert torch.equal(spread(work.ROWS).logits, model(work.ROWS).logits)
        tokens = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(spread.generate(work.ROWS[:1, :4], **tokens), model.generate(work.ROWS[:1, :4], **tokens))

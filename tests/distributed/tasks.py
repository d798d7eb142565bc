"""What processes of the tests in this folder do, each for itself; results are digests and numbers."""

import hashlib
import json
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import torch
from shard import make_accelerate_shard
from tiny_models import FAMILIES
from transformers import TrainerCallback

import fas
from fas import distributed as ranks
from fas.conversion import convert
from fas.registry import load
from fas.stages import calibrate
from fas.stages.align import Align
from fas.stages.finetune import Finetune
from fas.training.finetuning import finetune, language_modelling

ROWS = torch.randint(3, 100, (32, 10), generator=torch.Generator().manual_seed(1))


def digest(model):
    """Return a digest of all tensors of a model."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode() + value.detach().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def batches(family, count, padded=True):
    """Return batches of unequal length, with padding."""
    return [FAMILIES[family].batch(rows=2 + i % 2, length=7 + i, padded=padded, seed=i) for i in range(count)]


def collectives():
    """Return what a process gets of the others, from rows of which each has as many as its number."""
    ranks.join("cpu")
    rank, size = ranks.place()
    own = torch.full((rank, 2), float(rank))
    value = torch.tensor([float(rank)])
    ranks.agree([value])
    gathered = ranks.gathered(own).tolist()
    return gathered, value.tolist(), ranks.first_says(7 + rank, own.device), size


def shares(parts):
    """Return which parts this process has."""
    ranks.join("cpu")
    return list(ranks.share(parts))


def compare(same):
    """Compare something that all have, or each for itself."""
    ranks.join("cpu")
    ranks.check_same("numbers", [b"a", b"b" if same else str(ranks.place()[0]).encode()], torch.device("cpu"))


def calibrated(family, count, options, method="fas", shape=None):
    """Return a digest of a calibrated model."""
    ranks.join("cpu")
    recipe = load("methods", method)(**options)
    return digest(convert(FAMILIES[family].build(**(shape or {})), recipe, calibration=batches(family, count)))


def misgiven():
    """Calibrate on data of which every process has other."""
    ranks.join("cpu")
    convert(FAMILIES["gpt2"].build(), fas.FAS(), calibration=batches("gpt2", 2 + ranks.place()[0]))


def lost_in_calibration(how):
    """Calibrate, and lose the second process, killed or silent; return the seconds until the error is raised."""
    ranks.PATIENCE = timedelta(seconds=5)
    ranks.join("cpu")
    fit = calibrate.Calibrate._fit

    def dying(self, population, *arguments):
        if ranks.place()[0] == 1 and ".1." in population.path:
            os.kill(os.getpid(), signal.SIGKILL) if how == "killed" else time.sleep(20)
        return fit(self, population, *arguments)

    calibrate.Calibrate._fit = dying
    convert(FAMILIES["gpt2"].build(), fas.FAS(timesteps=4), calibration=batches("gpt2", 4))


def aligned():
    """Train the losses."""
    model = convert(FAMILIES["gpt2"].build(), fas.FAS(timesteps=4), calibration=batches("gpt2", 1))
    ranks.join("cpu")
    Align().run(model, batches("gpt2", 1))


class Lost(TrainerCallback):
    """Kills a process behind a step."""

    def __init__(self, step, rank):
        self.step, self.rank = step, rank

    def on_step_end(self, args, state, control, **_):
        if (state.global_step, ranks.place()[0]) == (self.step, self.rank):
            os.kill(os.getpid(), signal.SIGKILL)


def ready(family, dtype):
    """Return a calibrated model without dropout, the same in every process."""
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if family == "gpt2" else {}
    model = FAMILIES[family].build(**dropout)
    method = fas.FAS(timesteps=4, neuron="signed_if")
    return convert(model, method, calibration=[{"input_ids": ROWS[:8]}]).to(dtype)


def tuned(directory, settings, options):
    """Fine-tune for four steps.

    Returns:
        Digests of the trained model and its control, and the losses that were logged.
    """
    if "ACCELERATE_USE_FSDP" in os.environ and "UNCHANGED" not in os.environ:
        make_accelerate_shard()
    model = ready(options.get("family", "gpt2"), options.get("dtype", torch.float32))
    rows = ROWS + int(os.environ.get("RANK", "0")) if options.get("other_data") else ROWS
    callbacks = [Lost(*options["lost"])] if "lost" in options else []
    settings = Finetune(**{"max_steps": 4, "learning_rate": 1e-3, "logging_steps": 1, **settings})
    record, dense = finetune(
        model, language_modelling(rows), settings, output_dir=directory, callbacks=callbacks,
        control=options.get("control", False), eval_dataset=language_modelling(ROWS[:4]),
    )  # fmt: skip
    last = max(Path(directory).glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    log = json.loads((last / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    results = {name: value for name, value in record.results.items() if "seconds" not in name}
    return digest(model), dense and digest(dense), losses, results

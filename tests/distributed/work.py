"""What each process of tests/distributed/test_processes.py does; the first writes what it has found."""

import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback

import fas
from fas.distributed import join
from fas.stages.finetune import Finetune
from fas.training.finetuning import finetune, language_modelling

ROWS = torch.randint(0, 60, (23, 16), generator=torch.Generator().manual_seed(1))


def calibrated():
    """Return a small converted model, calibrated on three batches of unequal length, with padding."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = GPT2Config(
        n_embd=32, n_layer=2, n_head=2, vocab_size=60, n_positions=16, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    mask = torch.ones_like(ROWS)
    mask[::3, 9:] = 0
    batches = [{"input_ids": ROWS[i : i + 9], "attention_mask": mask[i : i + 9]} for i in (0, 9, 18)]
    return fas.convert(GPT2LMHeadModel(shape).eval(), fas.FAS(timesteps=4), calibration=batches)


def tuned(model, directory, *, batch_size, accumulation, callbacks=()):
    """Run stage 1 and its control for four steps of eight rows, one pass over the data."""
    settings = Finetune(
        max_steps=4, batch_size=batch_size, gradient_accumulation=accumulation, learning_rate=1e-3, logging_steps=1,
        save_steps=2, spike_price=0.01,
    )  # fmt: skip
    return finetune(
        model, language_modelling(torch.cat([ROWS, ROWS[:9]])), settings, output_dir=directory, callbacks=callbacks
    )


class Lost(TrainerCallback):
    """Ends one process as the machine's failure would, once."""

    def on_step_end(self, args, state, control, **_):
        mark = Path(args.output_dir) / "lost"
        if state.global_step == 3 and distributed.get_rank() == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def save(model, file):
    """Write all tensors of a model."""
    save_file({name: value.detach().clone() for name, value in model.state_dict().items()}, file)


def main(out: Path, fails: bool) -> None:
    """Calibrate and tune as one of several processes."""
    join("cpu")
    first = distributed.get_rank() == 0
    model = calibrated()
    if first:
        save(model, out / "calibrated.safetensors")
    _, control = tuned(model, out / "run", batch_size=4, accumulation=1, callbacks=[Lost()] if fails else [])
    if first:
        save(model, out / "tuned.safetensors")
        save(control, out / "control.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--lost" in sys.argv)

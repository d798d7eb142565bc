"""Peak memory of one subject, in a process of its own that has never held anything else.

On the CPU it is the resident set as the kernel counts it: Linux keeps its high-water mark per process (VmHWM) and
lets the process lower it to the present size (``/proc/self/clear_refs``). A rehearsal with a tiny model has every
library load and compile what it keeps. The model is made, a short pass is run, freed memory is given back, the mark is
lowered, and then the passes are run:

    above model = VmHWM afterwards − resident set before,   total = VmHWM afterwards − resident set before the model.

On a GPU the same two differences of torch's allocator stand for it.
"""

from __future__ import annotations

import gc
import multiprocessing
import signal
from dataclasses import asdict, dataclass, fields
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config

from benchmarks.suite.absent import AbsentError
from benchmarks.suite.contender import Contender
from benchmarks.suite.sizes import from_config, random_tokens
from benchmarks.suite.stock import Stock
from benchmarks.suite.subjects import SUBJECTS
from fas.errors import FASError
from fas.memory import give_back
from fas.methods.fas import FAS

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_SHORT = 2  # tokens of the pass that lets libraries allocate


@dataclass(frozen=True)
class Job:
    """What one process has to do: plain values, so that it can be handed over.

    Attributes:
        size: of the model.
        subject: name of the subject.
        method: fields of the method.
        parameters: file of calibrated parameters.
        device: as torch names it.
        threads: of torch.
        batch: sequences B.
        prompt: tokens of the prompt.
        new: tokens decoded behind it.
        seed: of weights and tokens.
    """

    size: str
    subject: str
    method: dict[str, Any]
    parameters: str
    device: str
    threads: int
    batch: int
    prompt: int
    new: int
    seed: int = 0


@dataclass(frozen=True)
class Peak:
    """Bytes of one subject.

    Attributes:
        above_model: highest use during the passes beyond the loaded model.
        total: the same beyond the process without a model.
    """

    above_model: int
    total: int


def peak(job: Job) -> Peak:
    """Measure in a new process.

    Raises:
        AbsentError: the subject is not there, the system keeps no such counts, or the process came to an early end.
    """
    if not job.device.startswith("cuda") and not (_STATUS.is_file() and _RESET.exists()):
        raise AbsentError("this system keeps no high-water mark that can be lowered (Linux does)")
    context = multiprocessing.get_context("forkserver")
    # Imported once, in a process that computes nothing; each subject's process is a fork of it.
    context.set_forkserver_preload(["benchmarks.suite.memory", "transformers.models.gpt2.modeling_gpt2"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, asdict(job)), daemon=True)
    process.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        raise AbsentError("its process came to an early end, as when memory runs out") from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if isinstance(found, str):
        raise AbsentError(found)
    return Peak(*found)


def _answer(sender: Connection, job: dict[str, Any]) -> None:
    # Who interrupts the program means the process that waits, which then ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        found = run(Job(**job))
    except FASError as error:
        sender.send(str(error))
        return
    sender.send(tuple(getattr(found, field.name) for field in fields(found)))


def run(job: Job) -> Peak:
    """Measure in this process, whose earlier allocations then blur the figure: ``peak`` is for everyday use."""
    torch.set_num_threads(job.threads)
    device = torch.device(job.device)
    meter = _Allocator(device) if device.type == "cuda" else _ResidentSet()
    _rehearse(job, device)
    empty = meter.lower()
    stock = Stock(job.size, FAS(**job.method), device=device, seed=job.seed, parameters=Path(job.parameters))
    contender = SUBJECTS[job.subject].make(stock, job.subject)
    ids = random_tokens(stock.dense, job.batch, job.prompt, seed=job.seed + 2).to(device)
    # The subject alone stays.
    del stock

    _passes(contender, ids[:, :_SHORT], 1)
    loaded = meter.lower()
    _passes(contender, ids, job.new)
    highest = meter.highest()
    return Peak(highest - loaded, highest - empty)


def _rehearse(job: Job, device: torch.device) -> None:
    """Run the subject on a tiny model: code that is loaded or compiled is no part of a model's memory."""
    config = GPT2Config(
        vocab_size=64, n_positions=16, n_embd=32, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None
    )
    method = FAS(**{**job.method, "coarse": False, "fine": False})
    stock = Stock("rehearsal", method, tokens=8, device=device, source=from_config(config))
    try:
        contender = SUBJECTS[job.subject].make(stock, job.subject)
    except AbsentError:
        # Made for another architecture: its libraries are loaded all the same.
        return
    _passes(contender, random_tokens(stock.dense, job.batch, 4, seed=0).to(device), 2)


def _passes(contender: Contender, ids: torch.Tensor, new: int) -> None:
    with torch.inference_mode():
        contender.decode(ids, new)()()


class _ResidentSet:
    """The resident set of this process, bytes."""

    def now(self) -> int:
        return self._field("VmRSS")

    def lower(self) -> int:
        gc.collect()
        # Or a pass would seem to need less than it does.
        give_back()
        _RESET.write_text("5", encoding="ascii")
        return self.now()

    def highest(self) -> int:
        return self._field("VmHWM")

    def _field(self, name: str) -> int:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
        (line,) = [line for line in lines if line.startswith(f"{name}:")]
        return int(line.split()[1]) * 1024


class _Allocator:
    """What torch has allocated on a GPU, bytes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> int:
        return torch.cuda.memory_allocated(self._device)

    def lower(self) -> int:
        gc.collect()
        torch.cuda.reset_peak_memory_stats(self._device)
        return self.now()

    def highest(self) -> int:
        return torch.cuda.max_memory_allocated(self._device)

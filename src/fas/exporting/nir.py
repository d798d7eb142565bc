"""Blocks of a converted model as NIR graphs, with traces and settings to check them by, and back."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fas import __version__
from fas.errors import CheckpointError, MissingExtraError
from fas.exporting.blocks import (
    Affine,
    Block,
    Trace,
    blocks,
    entry_of,
    left_out,
    neuron_of,
    relative_error,
)  # fmt: skip
from fas.exporting.folded import TIE, Folded, fold
from fas.layers.population import Population
from fas.storage.directory import whole_directory
from fas.storage.foreign import is_plain_name

FORMAT = 1
SIDECAR, TRACES = "export.json", "traces.safetensors"
SETTINGS: dict[str, dict[str, Any]] = json.loads(
    (files("fas") / "exporting" / "simulators.json").read_text(encoding="utf-8")
)
"""By simulator: how to read the graph, what to set on the neuron, and how to begin; no file of NIR alone says it.

Exact with snnTorch 1.0.0, SpikingJelly 2.0.0, sinabs 3.1.3 and Norse 1.1.0; as imported none is (docs/export.md).
"""

_EQUATION = (
    "s_t = [v_{t-1} + d_t >= 1], v_t = v_{t-1} + d_t - s_t, v_0 = v_init: reset by subtraction, no lower bound on v, "
    "no leak, at most one spike a step; v_init is in every IF node's metadata and in traces.safetensors"
)


@dataclass(frozen=True, eq=False)
class Exported:
    """One block as it was written.

    Attributes:
        block: in units of the threshold: θ = 1, μ = 0, and a current that is the drive d = (x − μ)/θ.
        folded: the plain neurons and layers in the file.
        log_threshold: ln θ of the model's own population (C,).
        offset: μ of it (C,).
        received: what the block receives in the trace [n, N, in or C'], n = 1 where it is the same at each step.
        spikes: what its neurons then send [T, N, C'], uint8.
        output: what comes out [n, N, out]; the mean over T where n = 1.
    """

    block: Block
    folded: Folded
    log_threshold: Tensor
    offset: Tensor
    received: Tensor
    spikes: Tensor
    output: Tensor

    def population(self) -> Population:
        """Return the population as it stood in the model, to the last bit of its parameters."""
        return replace(self.block, log_threshold=self.log_threshold, offset=self.offset, layers=()).modules()[0]


@dataclass(frozen=True)
class Check:
    """How a written block, simulated in float32, compares with the model.

    Attributes:
        site: of the block.
        spikes: in the trace.
        mismatches: neurons and steps that differ, of ``compared``; only where a potential is at the threshold.
        compared: neurons and steps.
        error: of the outputs, ‖y' − y‖ / ‖y‖.
    """

    site: str
    spikes: int
    mismatches: int
    compared: int
    error: float


def export_nir(
    model: Any,
    directory: str | Path,
    inputs: Mapping[str, Tensor],
    *,
    sites: Sequence[str] | None = None,
    rows: int = 32,
    about: Mapping[str, Any] | None = None,
) -> list[Check]:
    """Write the blocks of a converted model as NIR graphs.

    The directory gets ``SITE.nir`` for every site, ``traces.safetensors`` and ``export.json``. A graph is a chain:
    input, (the layer in front, where the neuron replaces its activation,) ``IF`` with threshold 1 everywhere,
    the layers after them side by side, output. Where no layer is in front, the input is the drive (x − μ)/θ of the
    activation x, which something computes that NIR cannot say (normalisation, GELU, attention): there the block
    ends, and the trace has what arrives. The directory appears whole or not at all.

    Args:
        model: a converted model, set to the T and schedule that are meant.
        directory: to write.
        inputs: of the model's forward, for the traces.
        sites: names of the sites that are wanted; all that linear layers follow if None.
        rows: samples times positions in the traces.
        about: further facts for ``export.json``.

    Returns:
        One check per block: the folded block simulated in float32 against the model's own spikes.

    Raises:
        FASError: a neuron that NIR's ``IF`` cannot stand for (see ``fold``).
        SiteError: see ``fas.exporting.blocks.blocks``.
        MissingExtraError: the package nir is not installed.
        OSError: disk full, no permission.
    """
    nir = _package()
    found = blocks(model, inputs, sites=sites, rows=rows)
    folds = [(block, fold(block)) for block in found]
    tensors: dict[str, Tensor] = {}
    entries, checks = [], []
    with whole_directory(Path(directory)) as beside:
        for block, folded in folds:
            file = f"{block.path}.nir"
            _write(nir, beside / file, _graph(nir, block, folded))
            traced = _traced(block, folded)
            tensors |= {f"{block.path}/{name}": tensor.contiguous() for name, tensor in traced.items()}
            checks.append(_checked(block, folded))
            entries.append(_entry(block, folded, file))
        save_file(tensors, beside / TRACES, {"fas_version": __version__})
        sidecar = {
            "format": FORMAT,
            "fas": __version__,
            "nir": nir.version if isinstance(getattr(nir, "version", None), str) else nir.__version__,
            **(about or {}),
            "timesteps": model.timesteps,
            "schedule": model.schedule,
            "operators": model.operators,
            "neuron_equation": _EQUATION,
            "simulators": SETTINGS,
            "blocks": entries,
            "left_out": left_out(model),
        }
        (beside / SIDECAR).write_text(json.dumps(sidecar, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return checks


def import_nir(directory: str | Path) -> dict[str, Exported]:
    """Read what ``export_nir`` has written, by site.

    ``Exported.block.modules()`` gives a population and spiking layers; that block exports to the same arrays.

    Raises:
        CheckpointError: a missing, damaged or foreign file, of another format, outside of the directory, not fitting.
        MissingExtraError: the package nir is not installed.
    """
    nir = _package()
    place = Path(directory)
    try:
        sidecar = json.loads((place / SIDECAR).read_text(encoding="utf-8"))
        tensors = load_file(place / TRACES)
    except FileNotFoundError as error:
        raise CheckpointError(f"{place} is not an export: {Path(error.filename or SIDECAR).name} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise CheckpointError(f"{place} is damaged ({error}): export the model again") from None
    if not isinstance(sidecar, dict) or sidecar.get("format") != FORMAT:
        stated = sidecar.get("format") if isinstance(sidecar, dict) else None
        raise CheckpointError(
            f"{place} is of format {stated!r}, this is fas {__version__} with format {FORMAT}: export the model again"
        )
    try:
        return {
            entry["site"]: _exported(nir, place, entry, sidecar["timesteps"], sidecar["schedule"], tensors)
            for entry in sidecar["blocks"]
        }
    except _MALFORMED as error:
        raise CheckpointError(
            f"{place} is damaged or was edited ({type(error).__name__}: {error}): export the model again"
        ) from None


# What reading raises where a file says something else than an export does.
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, AssertionError)


def _package() -> Any:
    try:
        import nir
    except ModuleNotFoundError:
        raise MissingExtraError("NIR files need the package nir: pip install 'fas[nir]'") from None
    return nir


def _graph(nir: Any, block: Block, folded: Folded) -> Any:
    v_init = folded.v_init.numpy()
    one = torch.ones_like(folded.v_init).numpy()
    metadata = {
        "site": block.path, "reset": "subtract", "v_init": v_init, "timesteps": block.timesteps,
        "mirrored": int(folded.mirrored),
    }  # fmt: skip
    nodes: dict[str, Any] = {}
    width = len(v_init) if folded.entry is None else folded.entry[0].shape[1]
    nodes["input"] = nir.Input({"input": _shape(width)})
    if folded.entry is not None:
        nodes["before"] = nir.Affine(weight=folded.entry[0].numpy(), bias=folded.entry[1].numpy())
    nodes["neurons"] = nir.IF(r=one, v_threshold=one, metadata=metadata)
    nodes["layers"] = nir.Affine(weight=folded.weight.numpy(), bias=folded.bias.numpy())
    nodes["output"] = nir.Output({"output": _shape(len(folded.bias))})
    names = list(nodes)
    return nir.NIRGraph(nodes=nodes, edges=list(itertools.pairwise(names)))


def _write(nir: Any, file: Path, graph: Any) -> None:
    import h5py

    # In memory, then as bytes: the library of HDF5 ends the process where the disk is full.
    content = io.BytesIO()
    nir.write(content, graph)
    with h5py.File(content, "r+") as opened:
        # Releases from 1.0.6 write a potential to reset to, which our neurons do not do, and with which releases up
        # to 1.0.4 cannot read the file; all read it without.
        neurons = opened["node/nodes/neurons"]
        if "v_reset" in neurons:
            del neurons["v_reset"]
    file.write_bytes(content.getvalue())


def _read(nir: Any, place: Path, name: Any) -> Any:
    """Return the nodes of a graph that lies in a directory and holds its own data."""
    import h5py

    if not is_plain_name(name):
        raise CheckpointError(
            f"{place / SIDECAR} names the file {name!r}: expected one beside it; take the export from its author"
        )
    file = place / name
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: {SIDECAR} names it; export the model again")
    with h5py.File(file, "r") as opened:
        _check_own(opened, file)
    return nir.read(str(file)).nodes


def _check_own(group: Any, file: Path) -> None:
    """Refuse links and data sets of HDF5 that lead to other files."""
    import h5py

    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise CheckpointError(f"{file} has a link at {group.name}/{name}: no export has one; nothing was read")
        member = group[name]
        if isinstance(member, h5py.Group):
            _check_own(member, file)
        elif member.external or member.is_virtual:
            raise CheckpointError(f"{file} keeps {member.name} in another file: no export does; nothing was read")


def _shape(width: int) -> Any:
    import numpy as np

    return np.array([width])


def _traced(block: Block, folded: Folded) -> dict[str, Tensor]:
    assert block.trace is not None
    received = folded.received(block)
    return {
        "received": received[:1] if block.even else received,
        "spikes": folded.fired(block.trace.spikes),
        "output": block.trace.output,
        "log_threshold": block.log_threshold,
        "offset": block.offset,
        "v_init": folded.v_init,
        "v_init_of_the_model": block.v_init.clone(),
    }


def _checked(block: Block, folded: Folded) -> Check:
    assert block.trace is not None
    spikes, output = folded.run(folded.received(block))
    wanted, answer = folded.fired(block.trace.spikes), block.trace.output
    output = output.mean(0, keepdim=True) if block.even else output
    differing = int((spikes.to(torch.uint8) != wanted).sum())
    return Check(block.path, int(wanted.sum()), differing, wanted.numel(), relative_error(output, answer))


def _entry(block: Block, folded: Folded, file: str) -> dict[str, Any]:
    sources = "the input of the layer in front" if folded.entry is not None else "the drive (x - offset)/threshold"
    return {
        "site": block.path,
        "file": file,
        **entry_of(block.neuron),
        "channels": block.channels,
        "mirrored": folded.mirrored,
        "tie": TIE if folded.mirrored else 0.0,
        "before": None if block.before is None else block.before.path,
        "layers": {path: list(ends) for path, ends in block.slices.items()},
        "boundary": {
            "input": f"{block.path if block.before is None else block.before.path}.input: {sources}"
            + (", beside it the same with the opposite sign" if folded.mirrored and folded.entry is None else ""),
            "output": ", ".join(f"{path}.output" for path in block.slices),
            "repeated": block.even,
            "compare": "the mean of the outputs over time" if block.even else "the outputs of every step",
        },
    }


def _exported(
    nir: Any, place: Path, entry: Mapping[str, Any], timesteps: int, schedule: str, tensors: Mapping[str, Tensor]
) -> Exported:
    path = entry["site"]
    try:
        nodes = _read(nir, place, entry["file"])
        own = {name.partition("/")[2]: t for name, t in tensors.items() if name.rpartition("/")[0] == path}
        weight, bias = _tensor(nodes["layers"].weight), _tensor(nodes["layers"].bias)
        entered = nodes.get("before")
        shapes_fit = len(own["v_init"]) == weight.shape[1] == len(nodes["neurons"].v_threshold)
    except (KeyError, OSError) as error:
        raise CheckpointError(f"{place / entry['file']} is damaged or incomplete ({error}): export again") from None
    if not shapes_fit:
        raise CheckpointError(
            f"{place / entry['file']} has {weight.shape[1]} neurons, {TRACES} {len(own['v_init'])} at {path}: the "
            "files belong to different exports"
        )
    into = None if entered is None else (_tensor(entered.weight), _tensor(entered.bias))
    folded = Folded(own["v_init"], weight, bias, bool(entry["mirrored"]), into)
    channels = entry["channels"]
    before = None if into is None else Affine(entry["before"], into[0][:channels], into[1][:channels])
    block = Block(
        path=path,
        neuron=neuron_of(entry),
        timesteps=timesteps,
        even=schedule == "layerwise",
        log_threshold=torch.zeros(channels),
        v_init=own["v_init_of_the_model"],
        offset=torch.zeros(channels),
        layers=tuple(
            Affine(name, weight[begin:end, :channels], bias[begin:end])
            for name, (begin, end) in entry["layers"].items()
        ),
        before=before,
        trace=_trace(own, before, channels),
    )
    return Exported(
        block, folded, own["log_threshold"], own["offset"], own["received"], own["spikes"], own["output"]
    )  # fmt: skip


def _trace(own: Mapping[str, Tensor], before: Affine | None, channels: int) -> Trace:
    """Return the trace with currents in units of the threshold and signed spikes."""
    received, spikes = own["received"], own["spikes"].to(torch.int8)
    if spikes.shape[-1] > channels:
        spikes = spikes[..., :channels] - spikes[..., channels:]
    current = received[..., :channels] if before is None else before(received)
    return Trace(current, spikes, own["output"], None if before is None else received)


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(array.copy())

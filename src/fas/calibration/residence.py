"""Walking through a model larger than the memory: one block there at a time, finished ones on the disk."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from fas.calibration.figures import Figures, mean_of
from fas.calibration.layout import Layout, siblings
from fas.errors import SiteError
from fas.memory import peak_resident
from fas.storage.directory import write_tensors
from fas.storage.resume import Run
from fas.storage.sharded import Sharded, write_index
from fas.surgery.replace import populations
from fas.surgery.sites import block_of
from fas.types import Network, Site

logger = logging.getLogger(__name__)

# Bytes of one shard of what belongs to no block.
_SHARD = 1 << 30
# The last part of a run: everything is written.
_COMPLETE = "complete"


@dataclass(frozen=True)
class Finished:
    """A block that has been calibrated and written.

    Attributes:
        path: its name.
        done: blocks finished, of ``total``.
        total: blocks of the model.
        seconds: what it took.
        remaining: seconds that the blocks to come will take if they take as long as those of this run.
        peak: most resident memory of this process so far, in bytes.
        figures: relative error and spikes per neuron (``fas.calibration.figures.mean_of``).
    """

    path: str
    done: int
    total: int
    seconds: float
    remaining: float
    peak: int
    figures: Figures


class Residence:
    """Keeps in memory the part of a model that a walk needs, and on the disk what is done.

    ``directory`` holds ``journal.jsonl`` (what is finished, and by which command; beside it what conversion has added
    to each block, for an interrupted run to resume with), ``model`` (the shards of the converted model) and ``hidden``
    (the hidden states that enter the next block). Every file appears whole; the journal names it afterwards.

    Args:
        source: the checkpoint, its model converted and settled.
        layout: of the model.
        directory: of the run.
        fingerprint: what the result depends on; a journal of another run is refused.
        budget: bytes of hidden states that are held in memory too.
        told: told after each block.

    Attributes:
        finished: blocks, and sites outside of blocks, that are written.
        has_moved: whether an earlier run has written everything and moved it to its place.

    Raises:
        CheckpointError: the directory holds another run's leftovers; the field that differs is named.
        SiteError: blocks that exchange more than their hidden state.
    """

    def __init__(
        self,
        source: Sharded,
        layout: Layout,
        directory: Path,
        fingerprint: Mapping[str, Any],
        *,
        budget: int,
        told: Callable[[Finished], None] | None = None,
    ) -> None:
        self.source, self.layout, self.directory, self.budget, self.told = source, layout, directory, budget, told
        self.sites: dict[str, Site] = {site.path: site for site in source.model.sites}
        self.blocks = _blocks(source.model, layout)
        self._inside = {name for path in self.blocks for name in source.names(path)}
        self._present: set[str] = set()
        self._shelf: Shelf | None = None
        self._began = time.perf_counter()
        self._spent: list[float] = []
        self._run = Run(directory / "journal.jsonl", fingerprint, refuse=True)
        self._run.begin()
        self.has_moved = _COMPLETE in self._run.entries and not (directory / "model").exists()
        (directory / "model").mkdir(exist_ok=True)
        parts = [part for part in self._run.entries.values() if part is not None]
        self._shards: dict[str, dict[str, int]] = {part["shard"]: part["tensors"] for part in parts}
        self._figures: dict[str, Figures] = {site: x for part in parts for site, x in part["figures"].items()}
        self._written = {name for part in parts for name in part["parameters"]}
        for file in (directory / "model").iterdir():
            # Half a shard, or what is written at the end.
            if file.is_dir():
                shutil.rmtree(file)
            elif file.name not in self._shards:
                file.unlink()
        self.finished = [path for path in self._run.entries if path in self.blocks or path in self.sites]
        self._earlier = frozenset(self.finished)
        for path in self.finished:
            self._restore(path)

    def watch(self) -> list[Any]:
        """Let what lies outside of all blocks come into memory when it is first called; return the handles."""
        handles = []
        for path, module in self.source.model.named_modules():
            names = [name for name in self.source.names(path, below=False) if name not in self._inside]
            if names:
                handles.append(module.register_forward_pre_hook(lambda *_, names=names: self._load(names)))
        return handles

    def hidden(self, blocks: Sequence[str]) -> tuple[int, MutableMapping[tuple[Network, int], Tensor]]:
        """Return how many blocks of a chain are finished, and the hidden states that enter the next one."""
        done = sum(path in self.finished for path in blocks)
        self._shelf = Shelf(self.directory / "hidden" / blocks[0], done, self.budget)
        return done, self._shelf

    def found(self, part: str) -> tuple[Any, dict[str, Tensor]] | None:
        """Return the figures of a site that an interrupted run has written; its parameters are in the model."""
        return (self._figures.get(part), {}) if (block_of(part) or part) in self._earlier else None

    def add(self, part: str, value: Any, tensors: Mapping[str, Tensor]) -> None:
        """Take the figures of a site; write and drop its layers, or with its last site the block that it stands in."""
        self._figures[part] = value
        if block_of(part) is None:
            self.leave(part)

    def prepare(self, site: Site) -> None:
        """Have the layers after a site in memory; those of a block are there already."""
        if block_of(site.path) is None:
            self.enter(site.path)

    def enter(self, path: str) -> None:
        """Bring a block, or the layers of a site outside of all blocks, into memory, and nothing else."""
        names = self._names(path)
        if path in self.blocks and self._shelf is not None:
            self._shelf.writing = self._shelf.reading + 1
        if self._present != set(names):
            self._drop(self._present - set(names))
            self._load(names)

    def leave(self, path: str) -> None:
        """Write and drop a block, or the layers of a site outside, whose sites have been visited."""
        names = self._names(path)
        self._drop(self._present)
        self._write(path, names, self._own(path))
        self.finished.append(path)
        if path in self.blocks:
            assert self._shelf is not None
            self._shelf.turn()
            self._tell(path)

    def close(self) -> None:
        """Write what no site has to do with, and the index."""
        self._drop(self._present)
        self._shelf = None
        rest = [name for name in self.source.index if name not in self._written and self.source.tied.get(name) is None]
        for names in self._groups(rest):
            self._write(f"rest from {names[0]}", names, {})
        write_index(self.directory / "model", self._shards)
        self._run.add(_COMPLETE, None)

    def _groups(self, names: Sequence[str]) -> Iterator[list[str]]:
        group: list[str] = []
        size = 0
        for name in names:
            parameter = self.source.model.get_parameter_or_buffer(name)
            size += parameter.numel() * parameter.element_size()
            if group and size > _SHARD:
                yield group
                group, size = [], parameter.numel() * parameter.element_size()
            group.append(name)
        if group:
            yield group

    def _names(self, path: str) -> list[str]:
        """Return the parameters in the files of a block, or of the layers of a site outside."""
        if path in self.blocks:
            return self.source.names(path)
        return [name for layer in self.sites[path].layers for name in self.source.names(layer)]

    def _own(self, path: str) -> dict[str, Tensor]:
        """Return what conversion has added to a block, or to the layers of a site outside."""
        layers = [path] if path in self.blocks else self.sites[path].layers
        state = {f"{at}.{n}": x for at in layers for n, x in self.source.model.get_submodule(at).state_dict().items()}
        return {name: x for name, x in state.items() if name not in self.source.index}

    def _restore(self, path: str) -> None:
        """Give the neurons of a finished block the parameters that an interrupted run has found."""
        model = self.source.model
        for name, value in self._run.tensors(path).items():
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, nn.Parameter(value))

    def _load(self, names: Sequence[str]) -> None:
        self.source.load(name for name in names if name not in self._present)
        self._present.update(names)

    def _drop(self, names: set[str]) -> None:
        self.source.drop(sorted(names))
        self._present -= set(names)

    def _write(self, part: str, names: Sequence[str], own: dict[str, Tensor]) -> None:
        """Write a shard and note it: parameters by name, and what conversion has added."""
        shard = f"model-{len(self._shards) + 1:05d}.safetensors"
        self._shards[shard] = self.source.write(self.directory / "model" / shard, names, own)
        self._written.update(names)
        figures = {path: x for path, x in self._figures.items() if part in (block_of(path), path)}
        about = {"figures": figures, "shard": shard, "tensors": self._shards[shard], "parameters": list(names)}
        self._run.add(part, about, own)

    def _tell(self, path: str) -> None:
        now = time.perf_counter()
        self._spent.append(now - self._began)
        self._began = now
        done = sum(block in self.finished for block in self.blocks)
        # The first of a run brings the way to it with it.
        usual = self._spent[1:] or self._spent
        remaining = (len(self.blocks) - done) * sum(usual) / len(usual)
        figures = mean_of((site for site in self.sites.values() if block_of(site.path) == path), self._figures)
        found = Finished(path, done, len(self.blocks), self._spent[-1], remaining, peak_resident(), figures)
        logger.info("%s: %.1f s, %.0f s to come, peak %.2f GiB", path, found.seconds, remaining, found.peak / 2**30)
        if self.told is not None:
            self.told(found)


class Shelf(MutableMapping[tuple[Network, int], Tensor]):
    """Hidden states by network and batch, on the disk; as many as the budget allows in memory as well.

    Those that enter a block stay until the next generation is complete: an interrupted run finds one whole.

    Args:
        directory: of a chain of blocks.
        reading: how many blocks the states that are read have passed.
        budget: bytes held in memory.
    """

    def __init__(self, directory: Path, reading: int, budget: int) -> None:
        self.directory, self.budget = directory, budget
        self.reading = self.writing = reading
        self._held: dict[tuple[Network, int], Tensor] = {}
        self._files: dict[tuple[Network, int], Path] = {}
        for file in sorted(self._place(reading).glob("*.safetensors")):
            network, _, i = file.stem.partition("-")
            self._files[network, int(i)] = file  # type: ignore[index]

    def __getitem__(self, key: tuple[Network, int]) -> Tensor:
        held = self._held.get(key)
        return load_file(self._files[key])["hidden"] if held is None else held

    def __setitem__(self, key: tuple[Network, int], value: Tensor) -> None:
        self._held.pop(key, None)
        file = self._place(self.writing) / f"{key[0]}-{key[1]}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(file, {"hidden": value})
        self._files[key] = file
        held = sum(x.numel() * x.element_size() for x in self._held.values())
        if held + value.numel() * value.element_size() <= self.budget:
            self._held[key] = value

    def __delitem__(self, key: tuple[Network, int]) -> None:
        self._held.pop(key, None)
        del self._files[key]

    def __iter__(self) -> Iterator[tuple[Network, int]]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def turn(self) -> None:
        """Let go of the states that entered the block now finished."""
        shutil.rmtree(self._place(self.reading), ignore_errors=True)
        self.reading = self.writing

    def _place(self, generation: int) -> Path:
        return self.directory / str(generation)


def _blocks(model: Any, layout: Layout) -> list[str]:
    """Return all blocks, if one can be there at a time."""
    first = dict.fromkeys(block for path in populations(model) if (block := block_of(path)) is not None)
    lists = {path.rpartition(".")[0]: siblings(model, path) for path in first}
    reason = None
    if layout.repeated:
        reason = f"{min(layout.repeated)} runs several times in a pass"
    else:
        for blocks in lists.values():
            if layout.chain(blocks, blocks[0]) != blocks or not layout.can_leave_out(blocks):
                reason = f"the blocks from {blocks[0]} on exchange more than their hidden state"
    if reason is not None:
        raise SiteError(f"{type(model).__name__} cannot be streamed: {reason}. Convert it in memory (fas.convert)")
    return [block for blocks in lists.values() for block in blocks]

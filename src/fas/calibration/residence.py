"""Walking through a model larger than the memory: one block there at a time, finished ones on the disk."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from fas.calibration.layout import Layout, siblings
from fas.errors import FASError, SiteError
from fas.memory import peak_resident
from fas.storage.sharded import Sharded, write_index, write_whole
from fas.surgery.replace import populations
from fas.surgery.sites import block_of
from fas.types import Network, Site

logger = logging.getLogger(__name__)

Figures = Mapping[str, float]
# Bytes of one shard of what belongs to no block.
_SHARD = 1 << 30


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
    """

    path: str
    done: int
    total: int
    seconds: float
    remaining: float
    peak: int


class Residence:
    """Keeps in memory the part of a model that a walk needs, and on the disk what is done.

    ``directory`` holds ``journal.json`` (what is finished, and by which command), ``model`` (the shards of the
    converted model), ``neurons`` (what conversion has added, for an interrupted run to go on with) and ``hidden``
    (the hidden states that enter the next block). Every file appears whole; the journal names it afterwards.

    Args:
        source: the checkpoint, its model converted and settled.
        layout: of the model.
        directory: of the run.
        fingerprint: what the result depends on; a journal of another run is refused.
        budget: bytes of hidden states that are held in memory too.
        told: told after each block.

    Attributes:
        figures: what is known of the sites visited.
        has_moved: whether an earlier run has written everything and moved it to its place.

    Raises:
        FASError: the directory holds another run's leftovers; the field that differs is named.
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
        directory.mkdir(parents=True, exist_ok=True)
        self._journal = _read_journal(directory, fingerprint)
        self.has_moved = bool(self._journal["complete"]) and not (directory / "model").exists()
        for name in ("model", "neurons"):
            (directory / name).mkdir(exist_ok=True)
        self.figures: dict[str, Figures] = self._journal["figures"]
        for file in (directory / "model").iterdir():
            # Half a shard, which the writer of weights has under a name of its own, or what is written at the end.
            if file.is_dir():
                shutil.rmtree(file)
            elif file.name not in self._journal["shards"]:
                file.unlink()
        self._earlier = frozenset(self.finished)
        for path in self.finished:
            self._restore(path)

    @property
    def finished(self) -> list[str]:
        """Blocks and layers outside of blocks that are written."""
        found: list[str] = self._journal["finished"]
        return found

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

    def has_visited(self, site: Site) -> bool:
        """Whether an interrupted run has visited a site and written what it belongs to."""
        return (block_of(site.path) or site.path) in self._earlier

    def prepare(self, site: Site) -> None:
        """Have the layers behind a site in memory; those of a block are there already."""
        if block_of(site.path) is None:
            self.enter(site.path)

    def conclude(self, site: Site, figures: Mapping[str, Figures]) -> None:
        """Write and drop the layers of a site outside of all blocks; a block is left when all its sites are done."""
        if block_of(site.path) is None and site.path not in self.finished:
            self.leave(site.path, figures)

    def enter(self, path: str) -> None:
        """Bring a block, or the layers of a site outside of all blocks, into memory, and nothing else."""
        names = self._names(path)
        if path in self.blocks and self._shelf is not None:
            self._shelf.writing = self._shelf.reading + 1
        if self._present != set(names):
            self._drop(self._present - set(names))
            self._load(names)

    def leave(self, path: str, figures: Mapping[str, Figures]) -> None:
        """Write and drop a block, or the layers of a site outside, whose sites have been visited."""
        names = self._names(path)
        self._drop(self._present)
        own = self._own(path)
        write_whole(self.directory / "neurons" / f"{path}.safetensors", own)
        self._write(names, own)
        self.finished.append(path)
        self.figures.update({k: dict(v) for k, v in figures.items() if k not in self.figures})
        self._commit()
        if path in self.blocks:
            assert self._shelf is not None
            self._shelf.turn()
            self._tell(path)

    def close(self) -> None:
        """Write what no site has to do with, and the index."""
        self._drop(self._present)
        self._shelf = None
        written = set(self._journal["parameters"])
        rest = [name for name in self.source.index if name not in written and self.source.tied.get(name) is None]
        for names in self._groups(rest):
            self._write(names, {})
            self._commit()
        write_index(self.directory / "model", self._journal["shards"])
        self._journal["complete"] = True
        self._commit()

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
        for name, value in load_file(self.directory / "neurons" / f"{path}.safetensors").items():
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, nn.Parameter(value))

    def _load(self, names: Sequence[str]) -> None:
        self.source.load(name for name in names if name not in self._present)
        self._present.update(names)

    def _drop(self, names: set[str]) -> None:
        self.source.drop(sorted(names))
        self._present -= set(names)

    def _write(self, names: Sequence[str], own: dict[str, Tensor]) -> None:
        shards = self._journal["shards"]
        file = f"model-{len(shards) + 1:05d}.safetensors"
        shards[file] = self.source.write(self.directory / "model" / file, names, own)
        self._journal["parameters"] += names

    def _commit(self) -> None:
        _replace(self.directory / "journal.json", self._journal)

    def _tell(self, path: str) -> None:
        now = time.perf_counter()
        self._spent.append(now - self._began)
        self._began = now
        done = sum(block in self.finished for block in self.blocks)
        # The first of a run brings the way to it with it.
        usual = self._spent[1:] or self._spent
        remaining = (len(self.blocks) - done) * sum(usual) / len(usual)
        found = Finished(path, done, len(self.blocks), self._spent[-1], remaining, peak_resident())
        logger.info("%s: %.1f s, %.0f s to come, peak %.2f GiB", path, found.seconds, remaining, found.peak / 2**30)
        if self.told is not None:
            self.told(found)


class Shelf(MutableMapping[tuple[Network, int], Tensor]):
    """Hidden states by network and batch, on the disk; as many as the budget allows in memory as well.

    Those that enter a block stay until the next generation is complete and ``turn`` is called, so that an
    interrupted run finds one of the two whole.

    Args:
        directory: of a chain of blocks.
        reading: how many blocks lie behind the states that are read.
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
        write_whole(file, {"hidden": value.contiguous()})
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


def _read_journal(directory: Path, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run with the same fingerprint has done, or the beginning of a new one."""
    file = directory / "journal.json"
    fresh: dict[str, Any] = {"fingerprint": dict(fingerprint), "complete": False, "finished": []}
    fresh.update(figures={}, shards={}, parameters=[])
    if not file.is_file():
        _replace(file, fresh)
        return fresh
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        before = found["fingerprint"]
        sound = set(fresh) <= set(found)
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise FASError(f"{file} is damaged: remove {directory} and start anew")
    for name, value in fingerprint.items():
        if before.get(name) != value:
            raise FASError(
                f"{directory} holds an unfinished conversion whose {name} is {before.get(name)!r}, not {value!r}: "
                "finish it with the same command, or remove the directory"
            )
    if found["finished"]:
        logger.info("going on behind %s", found["finished"][-1])
    return found


def _replace(file: Path, content: Mapping[str, Any]) -> None:
    beside = file.with_name(f"{file.name}.tmp")
    beside.write_text(json.dumps(content, indent=1), encoding="utf-8")
    beside.replace(file)

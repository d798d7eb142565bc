"""Directories of converted models: written whole, read and checked."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import platform
import shutil
import tempfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from fas.errors import CheckpointError
from fas.types import Site

CARD = "README.md"
# transformers names this text in the error that it raises where nobody has imported fas, or quant_method is another.
GUARD = "this is a spiking network: `import fas` before from_pretrained, and leave quant_method 'fas' in config.json"
MARK = "<!-- Written by fas, and again with every save. Take this line out to keep your own text. -->"


@contextlib.contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Write a file apart from its place and move it there when it has been written; the block gets where to write."""
    _clear(target.parent, target.name)
    beside = _beside(target.parent, target.name)
    try:
        yield beside / target.name
        _sync(beside / target.name)
        os.replace(beside / target.name, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_text(target: Path, text: str) -> None:
    """Write a text file that appears whole or not at all."""
    with whole_file(target) as beside:
        beside.write_text(text, encoding="utf-8")


def write_tensors(target: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file that appears whole or not at all."""
    with whole_file(target) as beside:
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
            beside,
            metadata=None if metadata is None else dict(metadata),
        )


def _sync(file: Path) -> None:
    """Have a file on the disk before it is moved: a machine that stops must not leave an empty one in its place."""
    with file.open("rb") as written:
        os.fsync(written.fileno())


class whole_directory:
    """Write a directory apart from its place and move it there when everything has been written.

    An existing directory stays the one it is (the current directory, a link); an error restores the old files.
    """

    def __init__(self, target: Path) -> None:
        self.target = target.resolve()

    def __enter__(self) -> Path:
        if self.target.exists() and not self.target.is_dir():
            raise NotADirectoryError(f"{self.target} is a file; name a directory to save to")
        self.target.parent.mkdir(parents=True, exist_ok=True)
        # Inside of a directory that is there: it may be the root of a file system, and its parent another's.
        place = self.target
        if not self.target.exists():
            place = self.target.parent
            _clear(place, self.target.name)
        self.beside = _beside(place, self.target.name)
        # mkdtemp is private to the user; what takes the place of a directory follows the umask as it would.
        umask = os.umask(0)
        os.umask(umask)
        self.beside.chmod(0o777 & ~umask)
        return self.beside

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        try:
            for file in self.beside.rglob("*") if kind is None else ():
                if file.is_file():
                    _sync(file)
            if kind is None and not self.target.exists():
                self.beside.rename(self.target)
            elif kind is None:
                self._exchange()
                # Not before: a process that was killed over an exchange has left old files there.
                _clear(self.target, self.target.name)
        finally:
            shutil.rmtree(self.beside, ignore_errors=True)

    def _exchange(self) -> None:
        """Move what has been written into a directory that is there."""
        written = {path.name for path in self.beside.iterdir()}
        if (self.target / CARD).exists() and not is_ours(self.target / CARD):
            written.discard(CARD)
        old = Path(tempfile.mkdtemp(dir=self.beside))
        moved: list[tuple[Path, Path]] = []
        try:
            for name in sorted(written | _superseded(self.target, written)):
                steps = [(self.target / name, old / name)] if os.path.lexists(self.target / name) else []
                for source, place in [*steps, *([(self.beside / name, self.target / name)] if name in written else [])]:
                    source.rename(place)
                    moved.append((source, place))
        except BaseException:
            for source, place in reversed(moved):
                place.rename(source)
            raise


def _beside(place: Path, name: str) -> Path:
    """Make a hidden directory to write in; its name says which process of which machine writes there."""
    return Path(tempfile.mkdtemp(prefix=f"{_stem(name)}{os.getpid()}.", dir=place))


def _clear(place: Path, name: str) -> None:
    """Remove what processes of this machine that were killed while they wrote have left."""
    for left in place.glob(f"{glob.escape(_stem(name))}*"):
        process = left.name.removeprefix(_stem(name)).partition(".")[0]
        if process.isdigit() and not _runs(int(process)):
            shutil.rmtree(left, ignore_errors=True)


def _stem(name: str) -> str:
    return f".{name}.{zlib.crc32(platform.node().encode()):08x}-"


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        # Permission denied: another user's.
        return not isinstance(error, ProcessLookupError)
    return True


def put(written: Path, target: Path) -> None:
    """Move a directory to its place, or its files into the directory that is there.

    Interrupted by a kill, it can be done again: ``written`` is whole until it is done.
    """
    if not target.exists():
        written.rename(target)
        return
    with whole_directory(target) as beside:
        shutil.copytree(written, beside, copy_function=_twin, dirs_exist_ok=True)


def _twin(source: str, copy: str) -> None:
    """Give a file a second name, or copy it where a file system has no such thing."""
    try:
        os.link(source, copy)
    except OSError:
        shutil.copy2(source, copy)


def _superseded(directory: Path, written: Collection[str]) -> set[str]:
    """Return the weight files of an earlier save, whole or in shards, that new weights would not overwrite.

    transformers would still read a whole file where shards have taken its place.
    """
    if not {SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME} & set(written):
        return set()
    names = {SAFE_WEIGHTS_NAME}
    index = directory / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        names.add(index.name)
        # Another program's index may say anything; files of a name that it cannot say are not ours.
        with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError):
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            names |= {name for name in shards if isinstance(name, str) and Path(name).name == name}
    return {name for name in names if (directory / name).is_file()}


def is_ours(file: Path) -> bool:
    """Whether a model card was written by this library and may be replaced: it has our mark."""
    try:
        return MARK in file.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return False


def check_files(files: Sequence[str], sites: Sequence[Site]) -> None:
    """Refuse a checkpoint that cannot be read or lacks parameters of a site.

    transformers would only warn, and fill what is missing with whatever memory holds.

    Raises:
        CheckpointError: a damaged file, or thresholds that are not there.
    """
    found: set[str] = set()
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                found.update(tensors.keys())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} cannot be read ({error}); it is damaged or the copy is incomplete: copy it again"
            ) from None
    if not files:
        return
    # By number, not by name: transformers renames some modules in the files it writes.
    layers = sum(len(site.layers) for site in sites)
    for what, ending, wanted, places in (
        ("thresholds", ".neuron.log_threshold", len(sites), "sites"),
        ("initial potentials (v_init)", ".neuron.v_init", len(sites), "sites"),
        ("offsets", ".neuron.offset", len(sites), "sites"),
        ("bias corrections", ".correction", layers, "layers"),
    ):
        there = sum(name.endswith(ending) for name in found)
        if there < wanted:
            raise CheckpointError(
                f"the checkpoint has {what} for {there} of {wanted} {places}: it is dense or incomplete. "
                "Convert the dense model with fas.convert, or copy the converted directory again"
            )


def write_guard(directory: Path) -> None:
    """Let transformers refuse a directory that it would make a dense network of: it finds no weights of that name."""
    place = directory / "config.json"
    if place.is_file():
        config = {**read_config(directory), "transformers_weights": GUARD}
        place.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_config(directory: Path) -> dict[str, Any]:
    """Return config.json of a model directory.

    Raises:
        CheckpointError: missing or damaged.
    """
    path = directory / "config.json"
    try:
        config: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CheckpointError(f"{directory} has no config.json: it is not a model directory") from None
    # RecursionError: brackets in brackets.
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy or convert the model again") from None
    return config

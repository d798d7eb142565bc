"""Labelled images from folders or tar archives with one folder per class, as tensors."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path, PurePosixPath
from typing import Any, overload

import torch
from torch import Tensor

from fas.errors import DataError, MissingExtraError

_ENDINGS = (".jpg", ".jpeg", ".png")
# Mean and standard deviation of each colour, of values from 0 to 1.
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@dataclass(frozen=True)
class Images:
    """Images of one size with one class each.

    Attributes:
        pixels: [N, 3, height, width], uint8, red first.
        labels: class indices [N], int64.
        label_names: name of class i at place i, in the order of the alphabet.
    """

    pixels: Tensor
    labels: Tensor
    label_names: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def part(self, start: int, stop: int | None = None) -> Images:
        """Return the images number ``start`` to ``stop`` − 1 of every class, in the order they were read.

        Raises:
            ValueError: no image of any class lies in between.
        """
        chosen = [(self.labels == label).nonzero().flatten()[start:stop] for label in range(len(self.label_names))]
        index = torch.cat(chosen)
        if not len(index):
            raise ValueError(f"no class has an image from number {start} to {stop}: it has {len(self)} images in all")
        return Images(self.pixels[index], self.labels[index], self.label_names)


def read_images(source: str | Path, *, per_class: int | None = None) -> Images:
    """Read ``<class>/<name>.jpg`` (jpeg, png) from a folder, or from a tar archive in memory.

    Args:
        source: a folder of one folder per class, or an archive that holds one (``test/cat/0001.jpg``).
        per_class: read the first so many of every class, in the order of their names; all if None.

    Raises:
        DataError: nothing there, no images, one that cannot be read, or sizes that differ.
        MissingExtraError: Pillow is not installed.
        ValueError: ``per_class`` below 1.
    """
    if per_class is not None and per_class < 1:
        raise ValueError(f"per_class is {per_class}; expected at least 1 image of every class")
    path = Path(source)
    if not path.exists():
        raise DataError(f"{path} does not exist: expected a folder or tar archive with one folder of images per class")
    kept: dict[str, list[tuple[str, bytes]]] = {}
    for name, content in _members(path, per_class):
        kept.setdefault(PurePosixPath(name).parent.name, []).append((name, content))
    if not kept:
        raise DataError(f"{path} has no images: expected <class>/<name> ending in {', '.join(_ENDINGS)}")
    names = tuple(sorted(kept))
    pixels = [_decode(name, content) for label in names for name, content in kept[label]]
    shapes = sorted({tuple(image.shape[1:]) for image in pixels})
    if len(shapes) > 1:
        raise DataError(f"{path} has images of {len(shapes)} sizes, such as {shapes[0]} and {shapes[1]}: resize them")
    labels = [i for i, label in enumerate(names) for _ in kept[label]]
    return Images(torch.stack(pixels), torch.tensor(labels), names)


def image_batches(
    images: Images, rows: int = 64, *, name: str = "x", seed: int | None = None
) -> list[dict[str, Tensor]]:
    """Return batches of images [B, 3, height, width], float32, normalised as ``CIFAR10``, with ``labels`` [B].

    Args:
        images: what is read.
        rows: of a batch; the last one may be smaller.
        name: of the argument that the model's forward reads images by.
        seed: shuffles; None keeps the order of the classes.

    Raises:
        ValueError: ``rows`` below 1.
    """
    if rows < 1:
        raise ValueError(f"rows is {rows}; a batch has at least 1 image")
    order = torch.arange(len(images))
    if seed is not None:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    centre, spread = (torch.tensor(values).view(1, 3, 1, 1) for values in CIFAR10)
    return [
        {name: (images.pixels[part].float() / 255 - centre) / spread, "labels": images.labels[part]}
        for part in order.split(rows)
    ]


def open_image(file: str | Path, content: bytes | None = None) -> Any:
    """Return an image file, or what was read from it, as an image of Pillow, in red, green and blue.

    Raises:
        DataError: a file that is missing or no image.
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise MissingExtraError("images need Pillow: pip install 'fas[images]'") from None
    try:
        with Image.open(file if content is None else io.BytesIO(content)) as opened:
            return opened.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"no image {file}: name a file, or the folder that images lie in") from None
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{file} is not an image that can be read ({error})") from None


class AugmentedBatches(Sequence[dict[str, Tensor]]):
    """Batches whose images are mirrored and shifted again each time they are read, for stages that train.

    Every image is mirrored left to right in half of the cases and shifted by up to ``shift`` pixels in both
    directions, zeros coming in. Reading the batches in one order from one seed gives the same images again.

    Source: He et al. 2016 (arXiv 1512.03385), who train so on CIFAR-10.

    Args:
        batches: normalised images [B, 3, height, width] under ``name``; other entries stay.
        shift: most pixels to either side.
        name: of the images in a batch.
        seed: of mirrors and shifts.
    """

    def __init__(self, batches: Sequence[dict[str, Tensor]], *, shift: int = 4, name: str = "x", seed: int = 0) -> None:
        self._batches, self._shift, self._name = batches, shift, name
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._batches)

    @overload
    def __getitem__(self, index: int) -> dict[str, Tensor]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Tensor]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Return one batch, or several, augmented."""
        if isinstance(index, slice):
            return [self._augmented(batch) for batch in self._batches[index]]
        return self._augmented(self._batches[index])

    def _augmented(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x, reach = batch[self._name], self._shift
        mirrored = torch.randint(2, (len(x),), generator=self._generator).bool()
        x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)
        height, width = x.shape[-2:]
        wide = torch.nn.functional.pad(x, (reach, reach, reach, reach))
        corners = torch.randint(2 * reach + 1, (len(x), 2), generator=self._generator).tolist()
        moved = [
            image[:, top : top + height, left : left + width] for image, (top, left) in zip(wide, corners, strict=True)
        ]
        return {**batch, self._name: torch.stack(moved)}


def _members(path: Path, per_class: int | None) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents in the order of the names, the first so many of every folder."""
    if path.is_dir():
        files = {file.as_posix(): file for file in path.glob("*/*") if file.suffix.lower() in _ENDINGS}
        yield from ((name, files[name].read_bytes()) for name in _first(files, per_class))
        return
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            members = [m for m in archive.getmembers() if m.isfile() and m.name.lower().endswith(_ENDINGS)]
            chosen = set(_first((member.name for member in members), per_class))
            # In the order of the archive: jumping in a compressed one starts over each time.
            for member in members:
                content = archive.extractfile(member) if member.name in chosen else None
                if content is not None:
                    found[member.name] = content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path} cannot be read as a tar archive ({error}): expected one, or a folder") from None
    yield from sorted(found.items())


def _first(names: Iterable[str], per_class: int | None) -> list[str]:
    """Return the first so many names of every folder, in order."""
    folders = {name: PurePosixPath(name).parent.name for name in names}
    ordered = sorted(folders, key=lambda name: (folders[name], name))
    groups = groupby(ordered, key=folders.__getitem__)
    return [name for _, group in groups for name in islice(group, per_class)]


def _decode(name: str, content: bytes) -> Tensor:
    """Return an image as [3, height, width] uint8."""
    picture = open_image(name, content)
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return flat.view(picture.height, picture.width, 3).permute(2, 0, 1).contiguous()

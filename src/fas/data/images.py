"""Labelled images from folders or tar archives with one folder per class, as tensors."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

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


def read_images(source: str | Path, *, per_class: int | None = None, size: tuple[int, int] | None = None) -> Images:
    """Read ``<class>/<name>.jpg`` (jpeg, png) from a folder, or from a tar archive in memory.

    Args:
        source: a folder of one folder per class, or an archive that holds one (``test/cat/0001.jpg``).
        per_class: read the first so many of every class, in the order of their names; all if None.
        size: height and width to which every image is resized (bilinear); None demands that all are of one size.

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
    pixels = [_decode(name, content, size) for label in names for name, content in kept[label]]
    shapes = sorted({tuple(image.shape[1:]) for image in pixels})
    if len(shapes) > 1:
        raise DataError(f"{path} has images of {len(shapes)} sizes, such as {shapes[0]} and {shapes[1]}: pass size=(…)")
    labels = [i for i, label in enumerate(names) for _ in kept[label]]
    return Images(torch.stack(pixels), torch.tensor(labels), names)


def image_batches(
    images: Images,
    rows: int = 64,
    *,
    mean: tuple[float, float, float] = CIFAR10[0],
    deviation: tuple[float, float, float] = CIFAR10[1],
    name: str = "x",
    seed: int | None = None,
) -> list[dict[str, Tensor]]:
    """Return batches of normalised images [B, 3, height, width], float32, with ``labels`` [B].

    Args:
        images: what is read.
        rows: of a batch; the last one may be smaller.
        mean: subtracted from each colour, of values from 0 to 1.
        deviation: each colour is divided by it.
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
    centre, spread = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, deviation))
    return [
        {name: (images.pixels[part].float() / 255 - centre) / spread, "labels": images.labels[part]}
        for part in order.split(rows)
    ]


def _members(path: Path, per_class: int | None) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents in the order of the names, the first so many of every folder."""
    seen: dict[str, int] = {}

    def wanted(name: str) -> bool:
        folder = PurePosixPath(name).parent.name
        seen[folder] = seen.get(folder, 0) + 1
        return per_class is None or seen[folder] <= per_class

    if path.is_dir():
        files = sorted(p for p in path.glob("*/*") if p.suffix.lower() in _ENDINGS)
        for file in files:
            if wanted(file.as_posix()):
                yield file.as_posix(), file.read_bytes()
        return
    try:
        with tarfile.open(path) as archive:
            members = [m for m in archive.getmembers() if m.isfile() and m.name.lower().endswith(_ENDINGS)]
            chosen = {member.name for member in sorted(members, key=lambda m: m.name) if wanted(member.name)}
            found: dict[str, bytes] = {}
            # In the order of the archive: jumping in a compressed one starts over each time.
            for member in members:
                if member.name in chosen:
                    content = archive.extractfile(member)
                    assert content is not None
                    found[member.name] = content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path} cannot be read as a tar archive ({error}): expected one, or a folder") from None
    for name in sorted(found):
        yield name, found[name]


def _decode(name: str, content: bytes, size: tuple[int, int] | None) -> Tensor:
    """Return an image as [3, height, width] uint8."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise MissingExtraError("images need Pillow: pip install pillow") from None
    try:
        with Image.open(io.BytesIO(content)) as opened:
            picture = opened.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{name} is no image that can be read ({error})") from None
    if size is not None:
        picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return flat.view(picture.height, picture.width, 3).permute(2, 0, 1).contiguous()

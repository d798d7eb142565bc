"""Plain networks and their photographs: a Python file that the user names builds the one, folders hold the others."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fas.errors import CheckpointError, DataError
from fas.loading import Loaded, _to

_FUNCTION = "load_network"


def load_either(name: str, device: str = "cpu", builder: Path | None = None, spiking: Path | None = None) -> Loaded:
    """Load a transformers model, or a plain network by the user's own code where a file is named that builds it.

    Args:
        name: of the model, or the directory that the code is given.
        device: where to put it.
        builder: a Python file with ``load_network(directory)``, which returns the module, alone or first in a tuple.
        spiking: what ``save_pretrained`` wrote of that network, converted; None leaves it dense.

    Raises:
        ValueError: ``spiking`` without ``builder``.
        CheckpointError: as ``load``; no such file or function, a module without convolutions, a damaged directory.
        SiteError: ``spiking`` was made of another network.
    """
    if builder is None:
        if spiking is not None:
            raise ValueError("--spiking is for plain networks (--builder): a converted transformers model is MODEL")
        from fas.loading import load

        return load(name, device)
    from torch import nn

    from fas.storage.foreign import check_parameters
    from fas.surgery.probe import is_convolutional

    spec = importlib.util.spec_from_file_location(builder.stem, builder) if builder.is_file() else None
    if spec is None or spec.loader is None:
        raise CheckpointError(f"--builder {builder} is not a Python file")
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    function = getattr(code, _FUNCTION, None)
    if function is None:
        raise CheckpointError(f"{builder} has no function {_FUNCTION}(directory) that returns the network")
    if not Path(name).is_dir():
        raise CheckpointError(f"no directory {name} for {builder} to load from")
    made = function(Path(name))
    model = made[0] if isinstance(made, tuple) else made
    if not isinstance(model, nn.Module) or not is_convolutional(model):
        raise CheckpointError(
            f"{_FUNCTION} of {builder} returned a {type(model).__name__}; expected a plain module with convolutions"
        )
    if spiking is not None:
        from fas.runtime.plain import load_module
        from fas.storage.checksums import check_sums

        check_sums(spiking)
        model = load_module(model, spiking)
    check_parameters(model, name)
    return Loaded(name if spiking is None else str(spiking), _to(model.eval(), device), None)


def is_plain(loaded: Loaded) -> bool:
    """Whether a model is a plain module that reads images."""
    from fas.surgery.probe import is_convolutional

    return is_convolutional(loaded.model)


def photographs(loaded: Loaded, source: str, part: str, *, limit: int, rows: int, seed: int | None) -> list[Any]:
    """Return labelled batches by the name of the model's argument, as many images of each class.

    Args:
        loaded: the model.
        source: a folder or archive with a folder per class, or a folder that holds ``train`` and ``test``.
        part: which of these.
        limit: images in all, about.
        rows: of a batch.
        seed: shuffles; None keeps the order.

    Raises:
        DataError: nothing to read there, or fewer images than classes asked for.
    """
    from fas.data.images import image_batches, read_images

    place = _part(Path(source), part)
    classes = len(read_images(place, per_class=1).label_names)
    images = read_images(place, per_class=max(1, limit // classes))
    name = next(iter(inspect.signature(loaded.model.forward).parameters), None)
    if name is None:
        raise DataError(f"{type(loaded.model).__name__}.forward names no argument that images could be")
    device = next(loaded.model.parameters()).device
    found = image_batches(images, rows, name=name, seed=seed)
    return [{key: value.to(device) for key, value in batch.items()} for batch in found]


def inputs_of(batches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return labelled batches without their labels."""
    return [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]


def _part(source: Path, part: str) -> Path:
    found = [source / part, source / f"{part}.tar.gz", source / f"{part}.tar"]
    return next((place for place in found if place.exists()), source)

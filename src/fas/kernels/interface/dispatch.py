"""Which backend runs an operation: the fastest one that can, or the one that was asked for by name."""

from __future__ import annotations

import functools
import importlib
import logging
from typing import Any

import torch

from fas import registry
from fas.errors import FASError
from fas.kernels.interface.backend import Backend
from fas.settings import VARIABLE, Kernels

logger = logging.getLogger(__name__)

# Fastest first; torch runs everything. Kernels that are not named here are taken only by name.
_PREFERRED = ("cpu", "triton", "torch")


@functools.cache
def choose(op: str, backend: Kernels, device: torch.device, dtype: torch.dtype) -> Backend:
    """Return the backend that runs an operation.

    Gradients and ``torch.compile`` are the caller's matter: both need torch.

    Args:
        op: name of a function of the backends.
        backend: ``auto``, or the one to take.
        device: of the tensors.
        dtype: of the tensors.

    Raises:
        FASError: a backend asked for by name that cannot run this.
    """
    kernels = found()
    if backend != "auto":
        kernel = kernels[backend]
        if not hasattr(kernel, op):
            # Products that a kernel leaves to torch, as it was asked for neurons.
            return kernels["torch"]
        able, reason = kernel.supports(op, device, dtype)
        if not able:
            raise FASError(
                f"kernels={backend!r} cannot run {op}: {reason}. Set model.kernels = 'auto' (or the environment "
                f"variable {VARIABLE}) to take another backend where this one cannot run"
            )
        return kernel
    passed = []
    for name in _PREFERRED:
        able, reason = kernels[name].supports(op, device, dtype)
        if able and hasattr(kernels[name], op):
            break
        passed.append(f"{name}: {reason}")
    logger.info("%s on %s in %s: kernels %r%s", op, device, dtype, name, f" ({'; '.join(passed)})" if passed else "")
    return kernels[name]


@functools.cache
def found() -> dict[str, Backend]:
    """Return every kernel by its name: the modules of ``fas.kernels``."""
    modules: Any = [importlib.import_module(f"fas.kernels.{key}") for key in registry.available("kernels")]
    return {module.name: module for module in modules}

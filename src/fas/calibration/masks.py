"""Which attention mask tells the padding among the rows of a site, where a model reads images beside text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from fas.surgery.probe import hooked, reads_images_and_text
from fas.surgery.replace import populations
from fas.types import Site

# From what flows into a site last to what does so first: an answer is made of the question, which knows of the image.
_MASKS = {"decoder_input_ids": "decoder_attention_mask", "input_ids": "attention_mask"}
NO_MASK = ""
"""Stands for the mask of rows that are not tokens: patches of an image."""


def masks_of_sites(model: nn.Module, batch: Mapping[str, Any], run: Callable[[], None]) -> dict[str, str]:
    """Return the name of the mask that belongs to each site, ``NO_MASK`` for rows of images.

    An image may have as many patches as the text has tokens, so that shapes do not tell: patches are rows into which
    no token has flowed. Empty for a model that reads text alone, or images alone.
    """
    if not reads_images_and_text(model):
        return {}
    flows = {name: _Flow(batch[name]) for name in _MASKS if isinstance(batch.get(name), Tensor)}
    found: dict[str, str] = {}

    def look(population: Any, arguments: tuple[Tensor, ...]) -> None:
        names = [name for name, flow in flows.items() if arguments[0] in flow.reached]
        found.setdefault(population.path, _MASKS[names[0]] if names else NO_MASK)

    hooks = hooked([population.register_forward_pre_hook(look) for population in populations(model).values()])
    with hooks, flows.get("input_ids", _Flow()), flows.get("decoder_input_ids", _Flow()):
        run()
    return found


def mask_of_rows(mask: Tensor | None, site: Site, x: Tensor) -> Tensor | None:
    """Return which rows of a site's input are not padding, None where none are, of the mask of its tokens.

    Weights of queries that are padding are left out, and so are the zeros of keys that a query must not see.
    """
    if site.role == "attention_weight":
        seen = (x != 0).any(-1)
        return seen if mask is None or mask.shape != x.shape[:2] else seen & mask.bool().unsqueeze(-1)
    if mask is None or mask.numel() != x.shape[:-1].numel():
        return None
    # OPT joins rows and positions in front of its MLP.
    return mask if mask.shape == x.shape[:-1] else mask.flatten() if x.ndim == 2 else None


class _Flow(TorchFunctionMode):
    """Follows a tensor through the functions of torch: ``reached`` is all that was computed of it."""

    def __init__(self, *sources: Tensor) -> None:
        super().__init__()
        self.reached: Any = WeakTensorKeyDictionary(dict.fromkeys(sources, True))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function; what it makes of a reached tensor is reached too."""
        result = func(*args, **(kwargs or {}))
        if any(isinstance(x, Tensor) and x in self.reached for x in pytree.tree_leaves((args, kwargs))):
            written = args[:1] if func is Tensor.__setitem__ else ()
            for x in pytree.tree_leaves((result, written)):
                if isinstance(x, Tensor):
                    self.reached[x] = True
        return result

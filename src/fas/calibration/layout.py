"""How the blocks of a model hand on to each other, seen in one pass, and passes that leave blocks out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from fas.surgery.probe import hooked
from fas.surgery.replace import populations
from fas.surgery.sites import block_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """What one pass shows of a model's blocks.

    Attributes:
        repeated: sites whose layers run more than once in a pass.
        handed: blocks whose hidden state is the very one that the block before them has returned.
        forms: blocks that receive nothing else of others of their list, and whose hidden state nothing but the next
            block reads (LLaVA reads that of the last block but one), so that a pass can leave them out; what each
            returns after its hidden state, None for nothing; attention weights that nobody asked for are None.
    """

    repeated: frozenset[str]
    handed: frozenset[str]
    forms: Mapping[str, tuple[Any, ...] | None]

    def chain(self, blocks: Sequence[str], block: str) -> list[str]:
        """Return the blocks of a list around one of them that hand on directly."""
        begin = end = blocks.index(block)
        while begin > 0 and blocks[begin] in self.handed:
            begin -= 1
        while end + 1 < len(blocks) and blocks[end + 1] in self.handed:
            end += 1
        return list(blocks[begin : end + 1])

    def can_leave_out(self, blocks: Sequence[str]) -> bool:
        """Whether a pass can do without these blocks."""
        return all(block in self.forms for block in blocks)


def siblings(model: nn.Module, path: str) -> list[str]:
    """Return the blocks of the list that a block stands in."""
    stem = path.rpartition(".")[0]
    names = [name for name, _ in model.get_submodule(stem).named_children() if name.isdigit()]
    return [f"{stem}.{name}" if stem else name for name in names]


def hidden_of(output: Any) -> Tensor:
    """Return the hidden state in what a block returns."""
    hidden: Tensor = output if isinstance(output, Tensor) else output[0]
    return hidden


def one_row(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the first row of a batch of text, which shows as much of a layout; batches of other things whole."""
    text = set(batch) <= {"input_ids", "attention_mask"}
    return {name: value[:1] for name, value in batch.items()} if text else batch


def observe(model: nn.Module, run: Callable[[], None]) -> Layout:
    """Watch one pass, which ``run`` runs to the end, of a converted model; it may lie on the meta device."""
    neurons = populations(model)
    lists = {path: siblings(model, path) for path in filter(None, map(block_of, neurons))}
    watch = _Watch()
    handles = [
        population.register_forward_pre_hook(lambda module, _: watch.sites.update([module.path]))
        for population in neurons.values()
    ]
    for stem, blocks in {path.rpartition(".")[0]: blocks for path, blocks in lists.items()}.items():
        for path in blocks:
            handles += watch.block(stem, path, model.get_submodule(path))
    with hooked(handles), watch:
        run()
    for path in watch.handed:
        stem, _, number = path.rpartition(".")
        before = f"{stem}.{int(number) - 1}" if stem else str(int(number) - 1)
        if before in watch.read:
            watch.forms.pop(before, None)
    repeated = {path for path, population in neurons.items() if watch.sites[path] > population.once.readers}
    return Layout(frozenset(repeated), frozenset(watch.handed), watch.forms)


class _Watch(TorchFunctionMode):
    """What the hooks of one pass collect, and which hidden states functions of torch read between the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[str] = set()
        self.inside = 0
        self.sites: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.handed: set[str] = set()
        self.forms: dict[str, tuple[Any, ...] | None] = {}
        # What blocks have returned, by the list they stand in; the hidden states of all together would grow with
        # depth, so only the last one of a list is held.
        self.made: dict[str, Any] = {}
        self.latest: dict[str, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function and note whose hidden state it reads."""
        result = func(*args, **(kwargs or {}))
        if not self.inside and (isinstance(result, Tensor) or getattr(func, "__name__", "") != "__get__"):
            for x in pytree.tree_leaves((args, kwargs)):
                if isinstance(x, Tensor):
                    self.read.update(made[x] for made in self.made.values() if x in made)
        return result

    def block(self, stem: str, path: str, module: nn.Module) -> list[Any]:
        made = self.made.setdefault(stem, WeakTensorKeyDictionary())

        def before(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            hidden = arguments[0] if arguments else named.get("hidden_states")
            self.inside += 1
            self.calls[path] += 1
            if self.calls[path] > 1:
                self.handed.discard(path)
            elif stem in self.latest:
                if self.latest[stem] is hidden:
                    self.handed.add(path)
                else:
                    logger.info("%s does not read what the block before it returns; it is reached from the input", path)
            others = pytree.tree_leaves((arguments[1:], {**named, "hidden_states": None}))
            if not any(isinstance(x, Tensor) and x in made for x in others):
                self.forms[path] = None

        def after(_: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            self.inside -= 1
            self.latest[stem] = hidden_of(output)
            for x in pytree.tree_leaves(output):
                if isinstance(x, Tensor):
                    made[x] = path
            if self.calls[path] > 1 or not isinstance(output, Tensor | tuple):
                self.forms.pop(path, None)
            elif path in self.forms and not isinstance(output, Tensor):
                self.forms[path] = pytree.tree_map(lambda x: None if isinstance(x, Tensor) else x, output[1:])

        return [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]


@contextmanager
def left_out(model: nn.Module, layout: Layout, blocks: Sequence[str], final: Tensor | None = None) -> Iterator[None]:
    """Let blocks return the hidden state that they receive, at no cost, while the context is open.

    Args:
        model: the model.
        layout: of the model; the blocks must be among its ``forms``.
        blocks: which ones.
        final: what the last of them returns instead.
    """

    def stub(path: str) -> Callable[..., Any]:
        rest = layout.forms[path]

        def forward(*arguments: Any, **named: Any) -> Any:
            hidden = arguments[0] if arguments else named["hidden_states"]
            hidden = final if final is not None and path == blocks[-1] else hidden
            return hidden if rest is None else (hidden, *rest)

        return forward

    # The module itself stays in its place: models read other attributes of it (the kind of its attention).
    modules: list[Any] = [model.get_submodule(path) for path in blocks]
    before = [vars(module).get("forward") for module in modules]
    for path, module in zip(blocks, modules, strict=True):
        module.forward = stub(path)
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            if own is None:
                del module.forward
            else:
                module.forward = own

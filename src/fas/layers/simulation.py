"""What all spiking layers of one model share: how it is simulated, and which steps are running now."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident, local
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from fas.errors import FASError
from fas.kernels import torch_
from fas.kernels.interface.code import Code
from fas.settings import SETTINGS, Settings, check

if TYPE_CHECKING:
    from fas.layers.gated import Gated

    _Attributes = Settings
else:
    _Attributes = object

logger = logging.getLogger(__name__)

_OF_CALL = ("head", "steps", "carry", "observers", "positions")


class _Thread(local):
    """What a thread has changed for the calls that it makes: {(id of a simulation, name): value}."""

    changed: Mapping[tuple[int, str], Any] = MappingProxyType({})


_thread = _Thread()


class Observer(Protocol):
    """Anything that wants to see every spike, which makes every site produce them as numbers."""

    def observe(self, path: str, spikes: Tensor, timesteps: int) -> None:
        """Receive the spikes of one site.

        Args:
            path: the site.
            spikes: number of spikes of every neuron after each simulated step [n, *B, C]; where the
                execution is collapsed, over the whole window [1, *B, C].
            timesteps: T.
        """


class Tally(Protocol):
    """Anything that wants the number of spikes alone (``fas.record``): kernels add it up on their way."""

    def tally(self, path: str, sent: Tensor, windows: int, timesteps: int) -> None:
        """Receive how many spikes one call of one site has sent.

        Args:
            path: the site.
            sent: by channel [C], int64, over all samples, positions and steps of the call; not to be changed.
            windows: neurons times samples and positions.
            timesteps: T.
        """


@dataclass
class Positions:
    """Positions of a row that a pass reads: cached keys and values are encoded again, and were sent before.

    Attributes:
        new: those that are new.
        cached: those before them, whose keys and values a cache holds.
        tokens: new ones of all rows, those of an encoder included; images or samples where there are no tokens.
    """

    new: int = 0
    cached: int = 0
    tokens: int = 0

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> Positions:
        """Read them off the named inputs of a forward: token ids, or images; of a plain module its first tensor."""
        new = tokens = 0
        encoded = inputs.get("encoder_outputs") is not None
        read = () if encoded else ("input_ids", "inputs_embeds", "pixel_values")
        for names in (read, ("decoder_input_ids", "decoder_inputs_embeds")):
            name = next((name for name in names if isinstance(inputs.get(name), Tensor)), None)
            if name is not None:
                shape = inputs[name].shape[: 1 if name == "pixel_values" else 2]
                new, tokens = (shape[1] if len(shape) == 2 else 0), tokens + shape.numel()
        if not tokens and not any(name.endswith(("_ids", "_embeds")) for name in inputs):
            tokens = next((len(value) for value in inputs.values() if isinstance(value, Tensor) and value.ndim), 0)
        length = getattr(inputs.get("past_key_values"), "get_seq_length", int)
        return cls(new, int(length()), tokens)

    def first(self, keys: int) -> int:
        """Return the first of a module's keys that is new.

        In cross-attention all keys come with the first pass of a decoder and none later.
        """
        if self.cached == 0:
            return 0
        own = self.new <= keys <= self.new + self.cached
        return keys - self.new if own and self.new else keys


class Simulation(_Attributes):
    """Settings and clock of one converted model, shared by reference among its layers.

    What ``using`` and ``running`` change, they change for the thread that called them: other threads may run the same
    model meanwhile, as its settings say.

    Args:
        settings: how the model runs; made of ``values`` if None.
        values: fields of ``Settings``.

    Attributes:
        settings: how the model runs, shared with its configuration; every one of them is an attribute here too.
        head: the layer whose answer alone matters, online: it computes what ``reduced`` makes of its input.
        steps: the steps 1…T in the batch at this moment (time-major rows), online only.
        carry: whether layers continue from the state of earlier steps and keep theirs for later ones.
        observers: receivers of every site's spikes or of their number.
        positions: those of the pass that runs, where somebody observes.
        calibrated: T that the thresholds were set for.
    """

    def __init__(self, settings: Settings | None = None, **values: Any) -> None:
        self.settings = Settings(**values) if settings is None else settings
        self.calibrated, self._warned = self.settings.timesteps, False
        self._call: dict[str, Any] = {**dict.fromkeys(_OF_CALL), "carry": False, "observers": []}
        self._online: dict[str, int] = {}

    if TYPE_CHECKING:
        head: nn.Module | None
        steps: range | None
        carry: bool
        observers: list[Observer | Tally]
        positions: Positions | None

    @property
    def folds(self) -> bool:
        """Whether time stands in the batch: the spiking network, online."""
        return self.network == "snn" and self.schedule == "online"

    @property
    def unchanged(self) -> tuple[object, ...]:
        """All settings; empty where there is more to ask than what they are.

        Gradients may flow or a graph is being compiled, somebody observes, or a block of this thread has changed any.
        """
        torch_asks = torch.compiler.is_compiling() or torch.is_grad_enabled()
        if torch_asks or _thread.changed or self._call["observers"]:
            return ()
        return tuple(vars(self.settings).values())

    @contextmanager
    def running(self, steps: range, *, carry: bool = False) -> Iterator[None]:
        """Declare which steps the rows of the batch hold while the block runs."""
        with self.alone(), self.using(steps=steps, carry=carry):
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Refuse other threads while the block runs: online, layers and the output layer keep what a call left.

        Raises:
            FASError: another thread is running the model.
        """
        # A dictionary's setdefault is one step for all threads, and unlike a lock it can be copied and saved.
        if torch.compiler.is_compiling():
            # A graph holds no state: it was traced as one call.
            yield
            return
        mine = get_ident()
        nested = self._online.get("thread") == mine
        if self._online.setdefault("thread", mine) != mine:
            raise FASError(
                "another thread is running this model online, where one call at a time may run: put a lock around its "
                "calls, give each thread a copy.deepcopy(model), or set model.schedule = 'layerwise'"
            )
        try:
            yield
        finally:
            if not nested:
                self._online.clear()

    def moment(self) -> dict[str, Any]:
        """Return what ``using`` takes to bring this moment back: settings, head and steps, without the observers."""
        return {name: getattr(self, name) for name in (*SETTINGS, "head", "steps", "carry")}

    @contextmanager
    def using(self, **settings: object) -> Iterator[None]:
        """Change settings for the calls of this thread while the block runs."""
        for name, value in settings.items():
            getattr(self, name)
            if name in SETTINGS:
                check(name, value)
        # Replaced, not changed in place: a compiled graph could not follow that.
        changed = _thread.changed
        new = {(id(self), name): value for name, value in settings.items()}
        before = {key: changed[key] for key in new if key in changed}
        _thread.changed = {**changed, **new}
        try:
            yield
        finally:
            _thread.changed = {**{key: value for key, value in _thread.changed.items() if key not in new}, **before}

    def warn_of_timesteps(self) -> None:
        """Say so, once, where T is another than the thresholds were set for."""
        if self.timesteps != self.calibrated and not self._warned:
            self._warned = True
            logger.warning(
                "T = %d with the thresholds of T = %d, which costs quality: fas.calibrate(model, data), or "
                "fas calibrate --timesteps, sets them for the T that is to run", self.timesteps, self.calibrated,
            )  # fmt: skip

    def reduced(self, signal: Tensor) -> Tensor:
        """Return what the output layer needs of rows [n·B, …]: [B, …]."""
        assert self.steps is not None
        return self.after_window(signal.unflatten(0, (len(self.steps), -1)))

    def after_window(self, steps: Tensor) -> Tensor:
        """Return what every step [n, …] comes to, […]: the last running mean, or the mean of single steps."""
        return steps[-1] if self.operators == "difference" else steps.mean(0)

    def _adds_up(self, observer: Observer | Tally, path: str) -> bool:
        """Whether the number of a site's spikes is enough; keys and values are told apart from those of a cache."""
        cached = self.positions and self.positions.cached and path.endswith((".operands.key", ".operands.value"))
        return hasattr(observer, "tally") and not cached

    def tally(self, code: Code, path: str) -> Tensor | None:
        """Return where a kernel is to add up spikes by channel [C], int64.

        None if nobody asks, if somebody asks for more, or if no kernel knows the neurons.
        """
        asked = bool(self.observers) and all(self._adds_up(observer, path) for observer in self.observers)
        return torch.zeros_like(code.offset, dtype=torch.int64) if asked and code.recursion is not None else None

    def tell(self, path: str, sent: Tensor | None, windows: int) -> None:
        """Hand on what a kernel has added up, if it has (see ``Tally``)."""
        if sent is not None:
            for observer in self.observers:
                cast(Tally, observer).tally(path, sent, windows, self.timesteps)

    def show(self, path: str, spikes: Tensor) -> None:
        """Hand on spikes (see ``Observer``), and their number to those who want that alone."""
        for observer in self.observers:
            if self._adds_up(observer, path):
                sent = torch.zeros(spikes.shape[-1], dtype=torch.int64, device=spikes.device)
                torch_.tally(spikes, sent)
                cast(Tally, observer).tally(path, sent, spikes[0].numel(), self.timesteps)
            else:
                cast(Observer, observer).observe(path, spikes, self.timesteps)

    def gated(self, function: Gated, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Evaluate a function by its gated population, and show what it sends to whoever looks at such.

        Args:
            function: the population.
            x: its inputs, any shape.
            hidden: bool of that shape, inputs that a mask hides: they are computed and not counted.
        """
        result = function(x)
        for observer in self.observers if self.network == "snn" else ():
            if hasattr(observer, "gated"):
                observer.gated(function, x if hidden is None else x[~hidden], result)
        return result

    def hide(self, path: str, hidden: Tensor) -> None:
        """Tell observers that a mask hides pairs of query and key, at which no neurons stand.

        Args:
            path: the site of the attention weights, whose spikes have been shown.
            hidden: bool [B, heads, queries, keys], online with the steps in the first dimension.
        """
        for observer in self.observers if self.network == "snn" else ():
            if hasattr(observer, "hide"):
                observer.hide(path, int(hidden.sum()) // (len(self.steps) if self.folds and self.steps else 1))

    def clock(self, like: Tensor) -> Tensor:
        """Return the running steps as a column [n, 1, …, 1] to combine with [n, *B, C]."""
        assert self.steps is not None
        steps = torch.arange(self.steps.start, self.steps.stop, device=like.device, dtype=like.dtype)
        return steps.view(-1, *[1] * (like.ndim - 1))


def _of_thread(name: str) -> property:
    """Return a setting, or a part of a running call, as the present thread has it."""
    is_setting = name in SETTINGS

    def read(simulation: Simulation) -> Any:
        # Every site of every token asks a dozen times.
        changed = _thread.changed
        if changed and (id(simulation), name) in changed:
            return changed[id(simulation), name]
        return getattr(simulation.settings, name) if is_setting else simulation._call[name]

    def write(simulation: Simulation, value: Any) -> None:
        if is_setting:
            check(name, value)
        changed = _thread.changed
        if (id(simulation), name) in changed:
            _thread.changed = {**changed, (id(simulation), name): value}
        elif is_setting:
            setattr(simulation.settings, name, value)
        else:
            simulation._call[name] = value

    return property(read, write)


for _name in (*SETTINGS, *_OF_CALL):
    setattr(Simulation, _name, _of_thread(_name))

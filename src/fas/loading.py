"""Models and tokenizers by name: the class that the checkpoint states, dense or spiking."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from fas.errors import CheckpointError, FASError, first_sentence

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Place:
    """Where a model lies, as transformers' ``from_pretrained`` takes it.

    Attributes:
        name: a directory, or a name on the hub.
        gguf_file: inside it, where the weights are in GGUF.
    """

    name: str
    gguf_file: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What ``from_pretrained`` must be given besides the name."""
        found: dict[str, Any] = {"trust_remote_code": False}
        return found if self.gguf_file is None else {**found, "gguf_file": self.gguf_file}


@dataclass(frozen=True)
class Loaded:
    """A model with what belongs to it.

    Attributes:
        name: as it was asked for.
        model: in evaluation mode.
        tokenizer: None where the model has none (images).
        processor: of images and text, for a model that reads both.
    """

    name: str
    model: Any
    tokenizer: Any
    processor: Any = None

    @classmethod
    def of(cls, model: Any, tokenizer: Any = None) -> Loaded:
        """Put together a model that is in memory with what lies where it came from."""
        name = str(getattr(model, "name_or_path", ""))
        loaded = cls(name or type(model).__name__, model, tokenizer)
        try:
            place = location(name)
        except CheckpointError:
            return loaded
        if tokenizer is None:
            loaded = replace(loaded, tokenizer=tokenizer_of(place))
        return replace(loaded, processor=_processor(place)) if loaded.reads_images_and_text else loaded

    @property
    def converted(self) -> bool:
        """Whether the model spikes."""
        from fas.runtime.transformers_ import ConvertedModel

        return isinstance(self.model, ConvertedModel)

    @property
    def data(self) -> str | None:
        """Name of the data that belong to the model: of its calibration; of its training, for the embedded one."""
        is_embedded = self.name == EMBEDDED or Path(self.name).resolve() == embedded().resolve()
        if is_embedded:
            return "stdlib"
        return self.model.fas_config.data if self.converted else None

    @property
    def bos(self) -> int | None:
        """Token that the tokenizer puts in front of every text, None where it adds none or there is no tokenizer."""
        from fas.data.text import leading_token

        return None if self.tokenizer is None else leading_token(self.tokenizer)

    @property
    def generates(self) -> bool:
        """Whether the model writes text."""
        can_generate = getattr(self.model, "can_generate", None)
        return not self.is_for("ForSequenceClassification") and can_generate is not None and bool(can_generate())

    @property
    def context(self) -> int | None:
        """Tokens that the model takes at once, if it has such a limit."""
        config = self.model.config.get_text_config()
        found = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        return None if found is None else int(found)

    @property
    def vocabulary(self) -> int | None:
        """Entries of the model's embedding."""
        found = getattr(self.model.config.get_text_config(), "vocab_size", None)
        return None if found is None else int(found)

    @property
    def conditions(self) -> dict[str, Any]:
        """What must be said beside any figure of the model as it is set now (``fas.runtime.conditions``)."""
        from fas.runtime.conditions import conditions

        text = {} if self.tokenizer is None else {"bos": self.bos is not None}
        return {**conditions(self.model, self.name), **text}

    def is_for(self, head: str) -> bool:
        """Whether the model's class ends with a head such as ``ForCausalLM``."""
        return type(self.model).__name__.endswith(head)

    def need_converted(self) -> None:
        """Refuse a dense model.

        Raises:
            CheckpointError: the model does not spike.
        """
        if not self.converted:
            raise CheckpointError(f"{self.name} is dense: convert it first with fas convert {self.name} OUT")

    def set(self, timesteps: int | None = None, schedule: Any = None) -> None:
        """Let a converted model run T steps by a schedule; None leaves its own.

        Raises:
            CheckpointError: the model does not spike.
            ValueError: T below 1, or no such schedule.
        """
        for name, value in (("timesteps", timesteps), ("schedule", schedule)):
            if value is not None:
                self.need_converted()
                setattr(self.model, name, value)

    @property
    def reads_images_and_text(self) -> bool:
        """Whether the model takes an image beside text."""
        from fas.surgery.probe import reads_images_and_text

        return reads_images_and_text(self.model)

    def need_processor(self) -> Any:
        """Return the processor of images and text.

        Raises:
            CheckpointError: the model has none.
        """
        if self.processor is None:
            raise CheckpointError(
                f"{self.name} has no processor of images and text: take a model that reads both, or copy its "
                "processor_config.json (preprocessor_config.json) and the tokenizer's files into its directory"
            )
        return self.processor

    def need_tokenizer(self) -> Any:
        """Return the tokenizer.

        Raises:
            CheckpointError: the model has none.
        """
        if self.tokenizer is None:
            raise CheckpointError(
                f"{self.name} has no tokenizer that can be read: copy the tokenizer's files into its directory, or "
                "pass tokenizer="
            )
        return self.tokenizer


def load(name: str, device: str = "cpu", *, gguf_file: str | None = None) -> Loaded:
    """Load a model and its tokenizer.

    Weights in GGUF are dequantised to float32.

    Args:
        name: a directory, a hub name, ``embedded``, a GGUF file (``model.gguf``; of the hub ``owner/name/model.gguf``).
        device: where to put the model, as torch names it.
        gguf_file: of the directory or hub name, where it has several or other weights too.

    Raises:
        CheckpointError: nothing of that name, a damaged directory, or one that should spike and does not.
        MissingExtraError: a GGUF file, and no package that reads it.
        ValueError: a device that torch does not have.

    Example:
        >>> fas.load("embedded").model.config.model_type  # doctest: +SKIP
        'gpt2'
    """
    name = name if gguf_file is None else f"{name}/{gguf_file}"
    place = location(name)
    import transformers

    from fas.distributed import join
    from fas.storage.directory import GUARD
    from fas.storage.foreign import check_parameters, reading
    from fas.storage.gguf import check_complete, dense, reading_gguf

    join(device)
    transformers.utils.logging.disable_progress_bar()
    if place.gguf_file is None and Path(place.name).is_dir():
        _check_directory(Path(place.name))
    with reading(name) if place.gguf_file is None else reading_gguf(place.name, place.gguf_file):
        config = transformers.AutoConfig.from_pretrained(place.name, **place.options)
        method = stated_method(config.to_dict())
        unstated = CheckpointError(
            f"{name} holds a spiking network, but its config.json states quant_method {method!r} where it should be "
            "'fas': copy config.json again"
        )
        if getattr(config, "transformers_weights", None) == GUARD and method != "fas":
            raise unstated
        if getattr(config, "auto_map", None):
            logger.warning("%s brings code of its own (auto_map in config.json), which is not run", name)
        kind = {"use_safetensors": True} if place.gguf_file is None else {"dtype": "float32"}
        model, loading = _class(config).from_pretrained(
            place.name, output_loading_info=True, ignore_mismatched_sizes=True, **kind, **place.options
        )
    if any(key.endswith(".log_threshold") for key in loading["unexpected_keys"]):
        raise unstated
    for parameter, stored, wanted in loading["mismatched_keys"]:
        raise CheckpointError(
            f"{parameter} of {name} is {list(stored)} in the file, but config.json makes it {list(wanted)}: the two "
            "belong to different models; copy the directory again"
        )
    if place.gguf_file is not None:
        check_complete(model, loading["missing_keys"], name)
        model = dense(model, name)
    elif loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        if method == "fas":
            raise CheckpointError(
                f"{name} lacks {', '.join(missing[:4])} ({len(missing)} parameters): the copy is incomplete; "
                "copy it again, or convert the dense model again"
            )
        logger.warning("%s lacks weights, which are random now: %s", name, ", ".join(missing[:4]))
    check_parameters(model, name)
    loaded = Loaded(name, _to(model.eval(), device), tokenizer_of(place))
    if loaded.reads_images_and_text:
        loaded = replace(loaded, processor=_processor(place))
    if method == "fas" and not loaded.converted:
        raise CheckpointError(f"{name} states quant_method 'fas', but its layers were not rebuilt as spiking ones")
    return loaded


def loaded_of(model: Any, tokenizer: Any = None, device: str = "cpu") -> Loaded:
    """Return a model with what belongs to it.

    Args:
        model: a name (``load``), what ``load`` returned, or a model; of the last, tokenizer and processor are read
            from the directory or the hub name that it was loaded from.
        tokenizer: in place of that.
        device: where a model is put that is loaded by name.

    Raises:
        CheckpointError: as ``load``.
    """
    if isinstance(model, Loaded):
        return model if tokenizer is None else replace(model, tokenizer=tokenizer)
    if isinstance(model, str | Path):
        loaded = load(str(model), device)
        return loaded if tokenizer is None else replace(loaded, tokenizer=tokenizer)
    return Loaded.of(model, tokenizer)


def location(name: str) -> Place:
    """Return what transformers' ``from_pretrained`` takes for a name.

    Raises:
        CheckpointError: no such directory or file, and no name that the hub could know.
    """
    from fas.storage.gguf import SUFFIX, only_file

    if name == EMBEDDED:
        return Place(str(embedded()))
    path = Path(name).expanduser()
    if path.is_dir():
        file = only_file(path)
        if file is None and not (path / "config.json").is_file():
            adapter = (path / "adapter_config.json").is_file()
            what = "an adapter: merge it into its model (peft), and save that" if adapter else "not a model directory"
            raise CheckpointError(f"{path} has no config.json and no {SUFFIX} file: it is {what}")
        return Place(str(path), file)
    if path.is_file() and path.suffix == SUFFIX:
        return Place(str(path.parent), path.name)
    if path.exists():
        raise CheckpointError(f"{path} is a file: name the directory that it lies in, or a {SUFFIX} file")
    repository, file = name, None
    if name.endswith(SUFFIX) and name.count("/") > 1:
        owner, repository, file = name.split("/", 2)
        repository = f"{owner}/{repository}"
    if name.startswith(".") or not _HUB_NAME.fullmatch(repository) or (file is None and name.endswith(SUFFIX)):
        raise CheckpointError(
            f"no directory or {SUFFIX} file {name}: name a model directory, a model of the hub, or {EMBEDDED!r}"
        )
    return Place(repository, file)


def embedded() -> Path:
    """Return the directory of the model that comes with the package.

    Raises:
        CheckpointError: it was left out of this installation.
    """
    directory = Path(str(files("fas"))) / "assets" / "stdlib-gpt2"
    if not (directory / "config.json").is_file():
        raise CheckpointError(
            f"the embedded model is missing ({directory}): install fas from its wheel, or name another model"
        )
    return directory


def stated_method(config: dict[str, Any]) -> str | None:
    """Return the quantisation method that a config.json names."""
    quantised = config.get("quantization_config") or {}
    found = quantised.get("quant_method") if isinstance(quantised, dict) else quantised.quant_method
    return None if found is None else str(found)


def directory_method(directory: Path) -> str | None:
    """Return the quantisation method of a model directory, None for a dense one or an unreadable file."""
    try:
        return stated_method(json.loads((directory / "config.json").read_text(encoding="utf-8")))
    except (ValueError, AttributeError, RecursionError):
        return None


def _class(config: Any) -> Any:
    """Return the model class that the checkpoint names, else the one that generates text."""
    import transformers

    from fas.storage.foreign import model_class

    found = model_class(config)
    if found is not None:
        return found
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoModelForSeq2SeqLM):
        if type(config) in auto._model_mapping:
            return auto
    return transformers.AutoModel


def tokenizer_of(place: Place) -> Any:
    """Return the tokenizer of a model, None where there is none."""
    import transformers

    found = _part(transformers.AutoTokenizer, place, "tokenizer", ("tokenizer.json", "tokenizer_config.json"))
    # Where a directory has none, transformers makes one that knows its special tokens and nothing else.
    return None if found is None or len(found) <= len(found.all_special_tokens) else found


def _processor(place: Place) -> Any:
    """Return the processor of images and text of a model, None where there is none."""
    import transformers

    found = _part(transformers.AutoProcessor, place, "processor", ("processor_config.json", "preprocessor_config.json"))
    # Where a directory has none, transformers hands out the tokenizer, or the half for images.
    return found if hasattr(found, "tokenizer") else None


def _part(auto: Any, place: Place, what: str, files: tuple[str, ...]) -> Any:
    """Return what stands beside a model; say so where its files are there and cannot be read."""
    from fas.storage.foreign import reason, unfit

    try:
        return auto.from_pretrained(place.name, **place.options)
    except Exception as error:
        # The library of tokenizers raises Exception itself; another kind is a fault of this program.
        if type(error) is not Exception and not isinstance(error, unfit()):
            raise
        there = place.gguf_file is not None or any((Path(place.name) / file).exists() for file in files)
        level = logging.WARNING if there else logging.INFO
        logger.log(level, "the %s of %s cannot be read: %s", what, place.name, reason(error))
        return None


def _check_directory(directory: Path) -> None:
    """Refuse weights that are damaged, a pickle or not those of their checksums, before transformers sees them."""
    from fas.storage.checksums import check_sums
    from fas.storage.directory import check_files
    from fas.storage.foreign import weight_files

    check_files([str(file) for file in weight_files(directory)[0]], [])
    check_sums(directory)


def _to(model: Any, device: str) -> Any:
    # torch reports a device that is not there as RuntimeError or AssertionError, an unknown name too.
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise FASError(f"device {device!r} cannot be used: {first_sentence(error)}") from error

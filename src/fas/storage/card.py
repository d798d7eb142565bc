"""The model card of a converted model: what it is, what was measured of it, how to load it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from fas._version import __version__
from fas.config import FASConfig
from fas.errors import CheckpointError
from fas.storage.directory import CARD, MARK, is_ours, read_config, write_text
from fas.storage.origin import BASE, HUB_NAME, ORIGIN, stated
from fas.surgery.left_dense import in_words
from fas.types import Measurement, Record

_STAGE = "measure"
_FITTED = {
    "mean_relative_error": "relative error of sites",
    "expected_divergence": "expected KL to the dense model, nats per answer",
    "spikes_per_neuron": "spikes per neuron, calibration data",
}
# What transformers fills into the hub's form for cards.
_STOCK = (
    "This is the model card of a 🤗 transformers model that has been pushed on the Hub. This model card has been "
    "automatically generated."
)
# Places inside of a model: a card is about the whole of it.
_PARTS = ("site", "place", "path")
# Follow from the energies, which the card states.
_DERIVED = ("energy_ratio", "break_even")
# Say where somebody's files are.
_PRIVATE = ("model", "command")
_NAMES = {
    "snn": "SNN",
    "snn_int8": "SNN, INT8",
    "ann": "dense",
    "ann_zeros_skipped": "dense, zeros skipped",
    "twin": "integer twin",
    "twin_zeros_skipped": "integer twin, zeros skipped",
}


def write_card(directory: str | os.PathLike[str], measurements: Iterable[Measurement] | None = None) -> Path:
    """Write the model card of a converted directory, ``README.md``.

    Figures are kept in config.json, so that later saves and uploads state them too, until calibration or training
    changes the model. The card shows those of the whole model; rows about single sites are left out.

    Args:
        directory: that ``save_pretrained`` of a converted model has written.
        measurements: rows of ``--json`` or ``fas.estimate_energy``, in place of those it has; None leaves these.

    Returns:
        The file.

    Raises:
        CheckpointError: no converted model, or a card that this library did not write.

    Example:
        >>> write_card("gpt2-snn", [Measurement("perplexity", 37.6, "1")])  # doctest: +SKIP
        PosixPath('gpt2-snn/README.md')
    """
    folder = Path(directory)
    config = read_config(folder)
    stored = config.get("quantization_config")
    if not isinstance(stored, dict) or stored.get("quant_method") != "fas":
        raise CheckpointError(f"{folder} holds no converted model: convert one with fas.convert and save it")
    file = folder / CARD
    if file.exists() and not is_ours(file):
        raise CheckpointError(f"{file} was not written by fas: move it away, or write what you want into it")
    if measurements is not None:
        records = [record for record in stored.get("records", ()) if record["stage"] != _STAGE]
        stored["records"] = records + [_recorded(row).to_dict() for row in measurements if _is_whole(row)]
        write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    try:
        text = str(model_card(config))
    except (KeyError, TypeError, AttributeError, IndexError, StopIteration) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} is damaged or was edited ({type(error).__name__}: {error}); copy the model again"
        ) from None
    write_text(file, text)
    return file


def is_stock(file: Path) -> bool:
    """Whether a model card is the empty form that transformers uploads where there is none, untouched."""
    if not file.is_file():
        return False
    text = ModelCard(file.read_text(encoding="utf-8"), ignore_metadata_errors=True).text
    return text.strip() == ModelCard.from_template(ModelCardData(), model_description=_STOCK).text.strip()


def model_card(config: Mapping[str, Any]) -> ModelCard:
    """Return the card of a converted model, from what its config.json says."""
    stored = FASConfig(**config["quantization_config"])
    architecture = (config.get("architectures") or ["model"])[0]
    if not isinstance(architecture, str) or not architecture.isidentifier():
        # It becomes part of the code that a card shows.
        raise CheckpointError(f"config.json names the class {architecture!r}, which is not the name of a class")
    base = config.get(BASE)
    local = base is not None and not HUB_NAME.fullmatch(base)
    # A model that has a name on the hub is the base itself, whatever it was made from.
    origin = stated(config.get(ORIGIN, {})) | ({} if base is None or local else {"base_model": base})
    task = _task(architecture)
    data = ModelCardData(
        # Hub pages of library transformers show how to load without our import, which gives the dense network.
        library_name="fas",
        pipeline_tag=task,
        tags=["spiking-neural-network", "fas", *(["transformers"] if "model_type" in config else [])],
        **origin,
    )
    name = architecture if base is None else _plain(base.rpartition("/")[2])
    link = "[{0}](https://huggingface.co/{0})".format(origin.get("base_model"))
    source = "" if base is None else f" from {name}" if local else f" from {link}"
    source += f" (base model: {link})" if local and "base_model" in origin else ""
    licence = _plain(f": {origin['license']}") if "license" in origin else ""
    parts = [
        f"---\n{data.to_yaml()}\n---",
        MARK,
        f"# {name} as a spiking neural network",
        f"Converted{source} with fas {__version__}: its layers receive spikes over T time steps, not floats. "
        f"{_note(stored)} The weights keep the licence of the dense model{licence}.",
        _table(["", ""], _facts(stored, architecture)),
        *_measured(stored),
        "## How to load",
        _loading(architecture, task, "model_type" in config),
    ]
    return ModelCard("\n\n".join(parts) + "\n", ignore_metadata_errors=False)


def _note(stored: FASConfig) -> str:
    calibrated = [record for record in stored.records if "tokens" in record.results and record.stage != _STAGE]
    if not any(record.stage not in (_STAGE, "fold_batch_norm") for record in stored.records):
        return "**Not calibrated**: thresholds are not set, and the spiking network refuses to run."
    tokens = f"; last calibrated on {calibrated[-1].results['tokens']:,.0f} tokens" if calibrated else ""
    tokens += f" of {_file_name(stored.data)}" if calibrated and stored.data else ""
    stages = [record.stage for record in stored.records if record.stage != _STAGE]
    return f"Stages: {_plain(', '.join(dict.fromkeys(stages)) + tokens)}."


def _facts(stored: FASConfig, architecture: str) -> list[list[Any]]:
    recipe: Any = stored.recipe
    sites = stored.sites or []
    signed = sum(recipe.build(site).signed for site in sites)
    fitted = {name: x for record in stored.records if record.stage != _STAGE for name, x in record.results.items()}
    return [
        ["class", f"`{architecture}`"],
        ["method", stored.method],
        [
            "coverage",
            f"{recipe.coverage}: {len(sites)} sites"
            + ("" if recipe.coverage == "full" else "; attention and normalisation stay float"),
        ],
        ["neuron", f"{stored.neuron}; {signed} of {len(sites)} sites with both signs"],
        ["multiply-adds", "unknown" if stored.left_dense is None else in_words(stored.left_dense)],
        ["time steps T", recipe.timesteps],
        ["levels", f"up to {stored.levels_after(recipe.timesteps):,} (zero and both signs included)"],
        *([words, fitted[name]] for name, words in _FITTED.items() if name in fitted),
        ["schedule, operators, execution", f"{recipe.schedule}, {recipe.operators}, {recipe.execution}"],
    ]


def _is_whole(row: Measurement) -> bool:
    if row.quantity in _DERIVED or any(part in row.conditions for part in _PARTS):
        return False
    # Operations by the token are the substance of the energies.
    return row.quantity == "energy" or not row.unit.endswith("/token")


def _recorded(row: Measurement) -> Record:
    conditions = {key: value for key, value in row.conditions.items() if key not in _PRIVATE}
    conditions.update({"data": _file_name(row.conditions["data"])} if "data" in row.conditions else {})
    settings = {"unit": row.unit, "origin": row.origin, "conditions": conditions}
    return Record(_STAGE, settings, {row.quantity: row.value})


def _file_name(data: Any) -> Any:
    """Return a text by its name: the folder that it lies in is nobody's business."""
    return Path(data).name if isinstance(data, str) and Path(data).is_absolute() else data


def _measured(stored: FASConfig) -> list[str]:
    """Return the sections of figures that hold for the model as it is."""
    records: list[Record] = []
    for record in stored.records:
        # What changes the model makes earlier figures those of another one.
        records = [*records, record] if record.stage == _STAGE else []
    rows = [(*next(iter(record.results.items())), record.settings) for record in records]
    figures = [row for row in rows if row[0] != "energy"]
    energies = [row for row in rows if row[0] == "energy"]
    parts = [] if rows else ["Quality has not been measured: `fas evaluate DIRECTORY --data TEXT --card` adds it."]
    if figures:
        shown = (
            "network", "schedule", "timesteps", "levels", "data", "task", "tokens", "window", "stride", "bos",
            "scored_tokens", "phase",
        )  # fmt: skip
        cells = [[name, value, s["unit"], s["origin"], _told(s["conditions"], shown)] for name, value, s in figures]
        parts += ["## Measured", _table(["quantity", "value", "unit", "origin", "conditions"], cells)]
    if energies:
        parts += ["## Energy", *_energies(energies)]
    return parts


def _energies(rows: Sequence[tuple[str, float, Mapping[str, Any]]]) -> list[str]:
    networks = [name for name in _NAMES if any(s["conditions"].get("energy_of") == name for _, _, s in rows)]
    lines: dict[tuple[Any, ...], dict[str, str]] = {}
    for _, value, settings in rows:
        about = settings["conditions"]
        key = tuple(about.get(name, "") for name in ("prices", "phase", "accounting"))
        partial = "> " if about.get("unpriced") else ""
        lines.setdefault(key, {})[about.get("energy_of", "snn")] = f"{partial}{_text(value / 1e6)}"
    about = rows[0][2]["conditions"]
    told = _plain(_told(about, ("timesteps", "data", "tokens")))
    reuse, precision = (_plain(str(about.get(name))) for name in ("reuse", "precision"))
    text = (
        f"µJ per token, estimated from counted operations ({told}; weights kept for: {reuse}; "
        f"floats are {precision}). Accounting *paper*: 0.9 pJ per "
        "addition against 4.6 pJ per multiply-add, the layers after the sites alone; *compute*: all arithmetic; "
        "*memory*: with weights, states and messages. > marks sums in which a price is missing. The fair comparison "
        "is the integer twin, which has as many levels."
    )
    cells = [[*key, *(found.get(name, "") for name in networks)] for key, found in lines.items()]
    return [text, _table(["prices", "phase", "accounting", *(_NAMES[name] for name in networks)], cells)]


def _told(conditions: Mapping[str, Any], names: Sequence[str]) -> str:
    words = {"timesteps": "T"}
    return ", ".join(f"{words.get(name, name)} {conditions[name]}" for name in names if name in conditions)


def _loading(architecture: str, task: str | None, known: bool) -> str:
    if not known:
        return (
            "The module is built by your own code; the directory has its sites, thresholds and weights:\n\n"
            f"```python\nimport fas\n\nmodel = fas.load_module({architecture}(), directory)\n```"
        )
    lines = ["import fas  # transformers refuses the model without it"]
    if task is None:
        lines += [f"from transformers import {architecture}", "", f"model = {architecture}.from_pretrained(directory)"]
    else:
        lines += ["from transformers import pipeline", "", f'run = pipeline("{task}", model=directory)']
    return (
        "`pip install .` in a checkout of fas brings the library.\n\n```python\n" + "\n".join(lines) + "\n```\n\n"
        "`directory` is a local copy, or the name of this repository."
    )


def _task(architecture: str) -> str | None:
    from transformers.modelcard import TASK_MAPPING

    for task, mapping in TASK_MAPPING.items():
        names = [n for found in mapping.values() for n in (found if isinstance(found, list | tuple) else [found])]
        if architecture in names:
            return str(task)
    return None


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_text(cell) for cell in line) + " |" for line in lines)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _plain(str(value)).replace("|", "\\|")


def _plain(text: str) -> str:
    """Return a text from a model's files as one line in which nothing is HTML or a link."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line.replace("<", "&lt;").replace("[", "\\[")

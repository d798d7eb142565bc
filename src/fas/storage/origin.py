"""What a dense model says of its origin: its licence, and the model on the hub that it was made from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load, try_to_load_from_cache

from fas.storage.directory import CARD
from fas.storage.foreign import unfit
from fas.storage.gguf import SUFFIX

BASE = "base_model_name_or_path"
"""Where config.json keeps the name of the dense model; adapters of peft use the same word."""
ORIGIN = "base_model_card"
"""Where config.json keeps what the dense model says of its origin."""

HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_LICENCE = ("license", "license_name", "license_link")
_FILE_ON_HUB = re.compile(rf"([\w.-]+/[\w.-]+)/.+\{SUFFIX}")


def remember_origin(config: Any) -> None:
    """Keep the name of the dense model, which a converted one would replace by its own place, and its origin.

    A local directory or file is known by its last part only, as ``./name``.

    What it remembers already stays.
    """
    name = getattr(config, "_name_or_path", "")
    if not name or hasattr(config, BASE):
        return
    here = Path(name).exists()
    inside = None if here else _FILE_ON_HUB.fullmatch(name)
    name = inside[1] if inside else name
    setattr(config, BASE, f"./{Path(name).resolve().name}" if here else name)
    if origin := origin_of(name):
        setattr(config, ORIGIN, origin)


def origin_of(name: str) -> dict[str, str]:
    """Return what the card or the GGUF file of a dense model states, under the hub's names: licence, ``base_model``.

    Args:
        name: a directory, a GGUF file, or a name on the hub, whose card counts if it is in the cache.
    """
    place = Path(name)
    if place.suffix == SUFFIX:
        return stated(_of_gguf(place)) if place.is_file() else {}
    try:
        card = place / CARD if place.is_dir() else try_to_load_from_cache(name, CARD)
        return stated((metadata_load(card) if isinstance(card, str | Path) else None) or {})
    except (OSError, ValueError, yaml.YAMLError):
        return {}  # no card, or one that is not a card's form


def stated(found: Mapping[str, Any]) -> dict[str, str]:
    """Return what can stand in a card: the licence and, if the hub could know it, the name of the base model."""
    kept = {key: found[key] for key in (*_LICENCE, "base_model") if isinstance(found.get(key), str)}
    if not HUB_NAME.fullmatch(kept.get("base_model", "a")):
        del kept["base_model"]
    return kept


def _of_gguf(file: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    try:
        fields = GGUFReader(file).fields
    except unfit():
        return {}
    named = {key: f"general.{key.replace('_', '.')}" for key in _LICENCE}
    found = {key: fields[field].contents() for key, field in named.items() if field in fields}
    for field in ("general.base_model.0.repo_url", "general.source.repo_url", "general.repo_url"):
        if field in fields:
            found.setdefault("base_model", str(fields[field].contents()).removeprefix("https://huggingface.co/"))
    return found

"""config.json from anywhere: read, or refused with an error of this library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import edited_json, json_values

from fas import registry
from fas.config import FORMAT, FASConfig
from fas.errors import FASError
from fas.storage.card import write_card

_REFUSED = (FASError, ValueError)
_SITE = {"path": "a", "role": "mlp", "channels": 7, "signed": True, "activation": None, "also": []}
_MEASURED = {
    "stage": "measure",
    "settings": {"unit": "1", "origin": "measured", "conditions": {"data": "x"}},
    "results": {"perplexity": 3.0},
    "sites": {},
}
_METHODS = tuple(registry.available("methods"))
_KEYS = (
    "method", "sites", "records", "format", "version", "weights", "quant_method", "timesteps", "levels", "coverage",
    "neuron", "schedule", "operators", "exclude", "granularity", "execution", "gated", "rotate", "spike_price", "self",
    "options", "kernels",
)  # fmt: skip

anything = st.dictionaries(st.sampled_from(_KEYS), json_values, max_size=5)
nearly: st.SearchStrategy[Any] = st.sampled_from(_METHODS).flatmap(
    lambda method: edited_json(
        {**FASConfig(method).to_dict(), "sites": [_SITE], "records": [_MEASURED], "format": FORMAT}
    )
)


@given(anything | nearly)
def test_a_configuration_is_read_or_refused(stored: Any) -> None:
    try:
        config = FASConfig(**stored)
    except _REFUSED as error:
        assert str(error)
        return
    # What is read can be written and read again.
    assert FASConfig(**json.loads(json.dumps(config.to_dict()))).recipe == config.recipe


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    anything | nearly,
    st.dictionaries(
        st.sampled_from(["architectures", "base_model_name_or_path", "model_type"]), json_values, max_size=3
    ),
)
def test_a_card_is_written_or_refused(tmp_path: Path, stored: Any, further: dict[str, Any]) -> None:
    content = {**further, "quantization_config": {**stored, "quant_method": "fas"}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "README.md").unlink(missing_ok=True)
    try:
        text = write_card(tmp_path).read_text()
    except _REFUSED:
        assert not (tmp_path / "README.md").exists()
        return
    assert text.startswith("---\n") and "\x1b" not in text


@pytest.mark.parametrize("method", _METHODS)
def test_what_the_fuzz_starts_from_is_read(method: str) -> None:
    # Else every case would be refused for one and the same reason.
    stored = {**FASConfig(method).to_dict(), "sites": [_SITE], "records": [_MEASURED]}
    assert FASConfig(**json.loads(json.dumps(stored))).method == method

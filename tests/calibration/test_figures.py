from __future__ import annotations

import logging

import pytest

from fas.calibration.figures import by_kind, in_words, mean_of, tell
from fas.types import Site

SITES = [
    Site("model.layers.0.mlp.down_proj", "mlp", 30),
    Site("model.layers.10.mlp.down_proj", "mlp", 10),
    Site("lm_head", "linear_input", 7),
]
FIGURES = {
    "model.layers.0.mlp.down_proj": {"relative_error": 0.1, "spikes_per_neuron": 1.0},
    "model.layers.10.mlp.down_proj": {"relative_error": 0.3, "spikes_per_neuron": 3.0},
}


def test_errors_are_a_mean_over_sites_and_spikes_over_neurons() -> None:
    found = mean_of(SITES, FIGURES)
    assert found["relative_error"] == pytest.approx((0.1 + 0.3) / 2)
    assert found["spikes_per_neuron"] == pytest.approx((30 * 1 + 10 * 3) / 40)


def test_without_figures_there_is_no_mean() -> None:
    assert mean_of(SITES, {}) == {} and in_words({}) == "thresholds set"


def test_kinds_leave_out_the_number_of_the_block() -> None:
    assert {kind: len(members) for kind, members in by_kind(SITES).items()} == {"mlp.down_proj": 2, "lm_head": 1}
    assert list(by_kind([Site("features.3", "conv_input", 3)])) == ["features.*"]


def test_a_line_names_the_block_or_the_site_outside_of_all(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fas.calibration.figures"):
        tell(SITES[:1], FIGURES, 1, 3)
        tell(SITES[2:], FIGURES, 3, 3)
    assert caplog.messages == [
        "model.layers.0: relative error 0.1, 1.00 spikes per neuron (1 of 3 sites)",
        "lm_head: thresholds set (3 of 3 sites)",
    ]

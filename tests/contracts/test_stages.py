"""What every stage promises: one signature, a record in JSON types, and a model that an error leaves as it was."""

from __future__ import annotations

import inspect
import json
import time
from dataclasses import fields, is_dataclass

import pytest
import torch
from tiny_models import FAMILIES

import fas
from fas import registry
from fas.errors import CalibrationError
from fas.methods.rate_norm import RateNorm
from fas.storage.resume import Run
from fas.types import Record, Stage

NAMES = registry.available("stages")
# Settings that make the work short and in several parts; the others are the stages' own.
SETTINGS = {
    "align": {"epochs": 2},
    "finetune": {"max_steps": 3, "batch_size": 2},
    "finetune_rates": {"max_steps": 3, "batch_size": 2},
    "rate_norm": {"epochs": 2},
    "reduce_bits": {"bits": (2, 1)},
    "train_quantised": {"epochs": 2},
    "train_rates": {"epochs": 2},
}
# Those that read no data, and those that have one part.
BLIND = ("rotate", "set_potential")


class Stopped(BaseException):
    """Nothing catches it."""


def stage_of(name: str) -> Stage:
    return registry.load("stages", name)(**SETTINGS.get(name, {}))


def started(name: str):
    """Return a calibrated model that the stage takes, and labelled batches for it."""
    if name == "rotate":
        family = FAMILIES["gpt2"]
        batches = [family.batch()]
        return fas.convert(family.build(), fas.FAS(timesteps=3), calibration=batches), batches
    family = FAMILIES["vit"]
    batches = [{**family.batch(rows=4, seed=seed), "labels": torch.arange(4) % 2} for seed in range(2)]
    method = RateNorm(timesteps=3, coverage="mlp", fit_epochs=1, replace_activation=True)
    inputs = [{"pixel_values": batch["pixel_values"]} for batch in batches]
    return fas.convert(family.build(), method, calibration=inputs), batches


def state(model):
    values = {name: value.clone() for name, value in model.state_dict().items()}
    return values, (model.timesteps, model.levels, model.network, model.training)


def same(one, other):
    return one[1] == other[1] and all(torch.equal(value, other[0][name]) for name, value in one[0].items())


@pytest.mark.parametrize("name", NAMES)
def test_settings_and_signature(name):
    stage = stage_of(name)
    assert isinstance(stage, Stage) and is_dataclass(stage) and inspect.getdoc(type(stage))
    chosen = {field.name: getattr(stage, field.name) for field in fields(stage)}
    stored = json.loads(json.dumps(chosen))
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in chosen.items()} == stored
    assert list(inspect.signature(stage.run).parameters) == ["model", "batches", "progress", "kept"]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_says_what_it_did_and_an_interrupted_one_leaves_the_model(name, tmp_path):
    (whole, batches), (model, _) = started(name), started(name)
    told = []
    began = time.perf_counter()
    record = stage_of(name).run(whole, batches, lambda *part: told.append(part))
    took = time.perf_counter() - began
    seconds = [value for key, value in record.results.items() if key.endswith("seconds")]
    assert all(0 <= one <= took for one in seconds)
    assert isinstance(record, Record) and record.stage == name
    assert json.loads(json.dumps(record.to_dict()))["settings"].keys() == {f.name for f in fields(stage_of(name))}
    before = state(model)

    def stop(*_):
        left.pop()
        if not left:
            raise Stopped

    left = [None] * max(1, len(told) - 1)
    if told:
        with pytest.raises(Stopped):
            stage_of(name).run(model, batches, stop, Run(tmp_path / "run.jsonl", {}).part(name))
        assert same(state(model), before)
    stage_of(name).run(model, batches, kept=Run(tmp_path / "run.jsonl", {}).part(name))
    assert same(state(model), state(whole))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BLIND])
@pytest.mark.parametrize("data", ["none", "nan"])
def test_data_that_are_none(name, data):
    model, batches = started(name)
    before = state(model)
    batches[0]["pixel_values"] = batches[0]["pixel_values"].clone()
    batches[0]["pixel_values"][0, 0, 0, 0] = torch.nan
    with pytest.raises(CalibrationError, match=r"no \w+ data|NaN|infinite|nan"):
        stage_of(name).run(model, [] if data == "none" else batches)
    assert same(state(model), before)

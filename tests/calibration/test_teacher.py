"""What counts as training, and that calibration afterwards keeps what was trained."""

from __future__ import annotations

import pytest
import tiny_cnns
import torch
from tiny_models import FAMILIES

import fas
from fas import registry
from fas.config import FASConfig
from fas.stages.finetune import Finetune
from fas.surgery.replace import populations
from fas.training.finetuning import language_modelling, tuned
from fas.types import Record

STAGES = {name: registry.load("stages", name) for name in registry.available("stages")}
TRAINING = [name for name, stage in STAGES.items() if getattr(stage, "trains", False)]
FEW = [{"x": tiny_cnns.images(4, seed=seed), "labels": torch.arange(4) % 5} for seed in range(2)]
INPUTS = [{"x": batch["x"]} for batch in FEW]


def trained(name, method, directory):
    """Return a converted model after a training stage, and inputs to calibrate it on."""
    if issubclass(STAGES[name], Finetune):
        family = FAMILIES["opt"]
        inputs = [family.batch()]
        model = fas.convert(family.build(), method, calibration=inputs)
        rows = language_modelling(inputs[0]["input_ids"])
        settings = STAGES[name](max_steps=2, learning_rate=1e-2, threshold_learning_rate=0.1)
        model.records.append(tuned(settings, model, rows, output_dir=directory))
        return model, inputs
    model = fas.convert(tiny_cnns.build("vgg"), method, probe={"x": FEW[0]["x"][:1]}, calibration=INPUTS)
    model.records.append(STAGES[name]().run(model, FEW))
    return model, INPUTS


def test_the_stages_that_train_thresholds_say_so():
    assert TRAINING == ["finetune", "reduce_bits", "train_quantised"]


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize("method", ["fas", "qcfs_only"])
def test_calibration_after_training_keeps_the_thresholds(name, method, tmp_path):
    made = registry.load("methods", method)(timesteps=4, coverage="mlp")
    model, inputs = trained(name, made, tmp_path / "run")
    assert model.is_trained and model.records[-1].trains and model.records[-1].stage == name
    before = {path: population.threshold.detach().clone() for path, population in populations(model).items()}
    if method == "fas":
        fas.calibrate(model, inputs)
    else:
        with pytest.raises(ValueError, match="these have been trained: run the model as it is"):
            fas.calibrate(model, inputs)
    assert all(torch.equal(population.threshold, before[path]) for path, population in populations(model).items())


@pytest.mark.parametrize(("stage", "trains"), [("reduce_bits", True), ("finetune", True), ("calibrate", False)])
def test_records_of_directories_that_do_not_say_it(stage, trains):
    (record,) = FASConfig(records=[{"stage": stage, "settings": {}, "results": {}, "sites": {}}]).records
    assert record.trains is trains
    assert FASConfig(records=[Record(stage, {}, {}, trains=trains).to_dict()]).records[0].trains is trains

import pytest
import tiny_cnns
from benchmarks.by_step import accuracy_by_step

import fas
from fas.evaluation.classify import classify_images
from fas.methods.threshold_balancing import ThresholdBalancing


def test_every_step_of_one_run_is_the_run_of_so_many_steps():
    x, dense = tiny_cnns.images(24, size=10).double(), tiny_cnns.chain()
    labels = dense(x).argmax(-1)
    batches = [{"x": x[:20], "labels": labels[:20]}, {"x": x[20:], "labels": labels[20:]}]
    model = fas.convert(dense, ThresholdBalancing(timesteps=6), probe={"x": x[:1]}, calibration=[{"x": x}])
    model.train()
    shares = accuracy_by_step(model, batches)
    assert model.training
    alone = []
    for steps in range(1, 7):
        model.timesteps = steps
        alone.append(classify_images(model, batches)["accuracy"])
    assert shares == alone and len(set(shares)) > 1
    model.schedule = "layerwise"
    with pytest.raises(ValueError, match="logits_per_step needs the spiking network in the online schedule"):
        accuracy_by_step(model, batches)

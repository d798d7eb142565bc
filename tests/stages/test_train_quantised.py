"""Training of a quantised classifier against its equations written down as a loop."""

import pytest
import tiny_cnns
import torch
from made import converted_chain
from torch.nn import functional

from fas.errors import DataError
from fas.methods.qcfs_only import QCFSOnly
from fas.stages.train_quantised import TrainQuantised
from fas.surgery.replace import populations

LEVELS = 3


def data(count=2):
    return [
        {"x": tiny_cnns.images(4, size=10, seed=seed).double(), "labels": torch.arange(4) % 5} for seed in range(count)
    ]


def converted(batches, levels=LEVELS):
    return converted_chain(QCFSOnly(timesteps=levels, levels=levels), batches)


def quantised(x, log_threshold):
    """θ/L · clip(⌊x L/θ + 1/2⌋, 0, L), the floor passing gradients straight through."""
    threshold = log_threshold.exp()
    level = x * LEVELS / threshold + 0.5
    return (level + (level.floor() - level).detach()).clamp(0, LEVELS) * threshold / LEVELS


def test_training_is_descent_on_the_cross_entropy_of_the_quantised_network():
    batches, rate, decay, steps = data(1), 0.02, 1e-3, 3
    model = converted(batches)
    layers = [model.features[0], model.features[3], model.features[6], model.head]
    own = [t.detach().clone().requires_grad_() for layer in layers for t in (layer.weight, layer.bias)]
    thetas = [p.log_threshold.detach().double().requires_grad_() for p in populations(model).values()]
    optimizer = torch.optim.SGD([*own, *thetas], rate, momentum=0.9, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    (batch,) = batches
    for _ in range(steps):
        value = batch["x"]
        for i, (stride, padding) in enumerate(((1, 1), (2, 1), (2, 0))):
            value = functional.conv2d(value, own[2 * i], own[2 * i + 1], stride, padding)
            value = quantised(value, thetas[i])
        loss = functional.cross_entropy(functional.linear(value.flatten(1), own[6], own[7]), batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    stage = TrainQuantised(epochs=steps, learning_rate=rate, weight_decay=decay)
    record = stage.run(model, batches)
    assert record.results["loss_last"] == pytest.approx(float(loss.detach()), rel=1e-4)
    made = [t.detach() for layer in layers for t in (layer.weight, layer.bias)]
    for found, wanted in zip(made, own, strict=True):
        # ln θ is float32 there, which moves values behind it by 1e-7 of themselves.
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-4, atol=1e-6)
    for population, wanted in zip(populations(model).values(), thetas, strict=True):
        torch.testing.assert_close(population.log_threshold.double(), wanted.detach(), rtol=1e-4, atol=1e-6)
    assert model.levels == LEVELS


def test_it_learns_and_leaves_corrections_and_potentials_alone():
    batches = data(3)
    model = converted(batches)
    before = {path: value.clone() for path, value in model.state_dict().items()}
    first = TrainQuantised(learning_rate=1e-12).run(model, batches).results["loss_last"]
    last = TrainQuantised(epochs=20, learning_rate=0.02).run(model, batches).results["loss_last"]
    assert last < 0.7 * first
    changed = {path for path, value in model.state_dict().items() if not torch.equal(before[path], value)}
    assert {"features.0.weight", "head.bias", "head.neuron.log_threshold"} <= changed
    assert not any(path.endswith(("correction", "v_init", "offset")) for path in changed)


def test_what_it_refuses():
    batches = data(1)
    with pytest.raises(DataError, match=r"has \['x'\] but no 'labels'"):
        TrainQuantised().run(converted(batches), [{"x": batches[0]["x"]}])
    with pytest.raises(ValueError, match="epochs is 0"):
        TrainQuantised(epochs=0)

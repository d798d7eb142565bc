"""Training on batches in memory, and the stages that are nothing else."""

import pytest
import tiny_cnns
import torch
from torch import nn

import fas
from fas.errors import CalibrationError, DataError
from fas.methods.fast_snn import FastSNN
from fas.stages.reduce_bits import ReduceBits
from fas.stages.set_potential import SetPotential
from fas.surgery.replace import populations, spiking_layers
from fas.training.descent import answer, check_descent, cross_entropy, descend


def test_it_is_sgd_with_a_cosine():
    start, targets = torch.tensor([1.0, -2.0]), [torch.tensor([0.0, 1.0]), torch.tensor([2.0, 0.0])]
    ours = nn.Parameter(start.clone())
    batches = [{"x": target} for target in targets]
    seen = []

    def loss(batch):
        seen.append(batch["x"])
        return (ours - batch["x"]).square().sum()

    history = descend(torch.optim.SGD([ours], 0.1, 0.9, weight_decay=0.01), batches, loss, label="test", epochs=2)
    theirs, velocity = start.clone(), torch.zeros(2)
    for step, target in enumerate(seen):
        rate = 0.1 * (1 + torch.cos(torch.tensor(torch.pi * step / 4))) / 2
        velocity = 0.9 * velocity + 2 * (theirs - target) + 0.01 * theirs
        theirs = theirs - rate * velocity
    torch.testing.assert_close(ours.data, theirs)
    assert len(history) == 4 and ours.grad is None
    assert {tuple(x.tolist()) for x in seen[:2]} == {tuple(x.tolist()) for x in targets}


def test_what_it_refuses():
    parameter = nn.Parameter(torch.ones(1))
    with pytest.raises(CalibrationError, match="no training data"):
        descend(torch.optim.SGD([parameter]), [], lambda batch: parameter.sum(), label="a", epochs=1)
    with pytest.raises(CalibrationError, match="scales: the loss is nan after 0 batches"):
        descend(torch.optim.SGD([parameter]), [{}], lambda _: parameter.sum() * torch.nan, label="scales", epochs=1)
    with pytest.raises(ValueError, match="epochs is 0"):
        check_descent(epochs=0, learning_rate=0.1)
    with pytest.raises(CalibrationError, match="returns a tuple without logits"):
        answer((torch.ones(1),))
    with pytest.raises(DataError, match=r"has \['x'\] but no 'labels'"):
        cross_entropy(nn.Identity(), {"x": torch.ones(1)})


def converted(**options):
    x = tiny_cnns.images(8, size=10).double()
    model = fas.convert(
        tiny_cnns.chain(), FastSNN(bits=4, tune_epochs=0, **options), probe={"x": x[:1]}, calibration=[{"x": x}]
    )
    return model.double(), [{"x": x, "labels": torch.arange(8) % 5}]


def test_bits_are_reduced_one_round_after_the_other():
    model, batches = converted()
    before = {path: value.clone() for path, value in model.state_dict().items()}
    told = []
    record = ReduceBits((3, 2), epochs=25, learning_rate=0.02).run(model, batches, lambda *what: told.append(what))
    assert (model.timesteps, model.levels, model.network) == (3, 3, "snn")
    assert [label.partition(",")[0] for label, done, total in told if done == total] == ["7 levels", "3 levels"]
    model.network = "quantised"
    with torch.no_grad():
        assert float(cross_entropy(model, batches[0])) < 0.5 < record.results["loss_3_bits"] + 0.5
    after = model.state_dict()
    kept = {path for path in before if torch.equal(before[path], after[path])}
    assert kept == {p for p in before if p.endswith(("correction", "v_init", "offset"))}
    assert [r.stage for r in (record,)] == ["reduce_bits"]


def test_every_round_starts_from_thresholds_for_its_levels_unless_told_otherwise():
    model, batches = converted()
    wide = {path: p.threshold.detach().clone() for path, p in populations(model).items()}
    # At this rate nothing is learned: what is left is where the round began.
    ReduceBits((2,), learning_rate=1e-12, refit=False).run(model, batches)
    for path, population in populations(model).items():
        torch.testing.assert_close(population.threshold, wide[path], rtol=1e-6, atol=0)  # ln θ in float32
    ReduceBits((2,), learning_rate=1e-12).run(model, batches)
    fresh, _ = converted(timesteps=3, levels=3)
    for path, population in populations(model).items():
        torch.testing.assert_close(population.threshold, populations(fresh)[path].threshold, rtol=1e-6, atol=0)
    assert all(bool(p.threshold < wide[path]) for path, p in populations(model).items())


@pytest.mark.parametrize("bits", [(), (2, 3), (0,), (9,), (2.0,)])
def test_bits_fall(bits):
    with pytest.raises(ValueError, match="expected whole numbers from 8 to 1, falling"):
        ReduceBits(bits)


def test_one_potential_for_all():
    model, _ = converted()
    record = SetPotential(0.25).run(model, [])
    assert all(bool((p.v_init == 0.25).all()) for p in populations(model).values())
    assert record.results == {"sites": float(len(populations(model)))} and spiking_layers(model)
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"share is {share}"):
            SetPotential(share)

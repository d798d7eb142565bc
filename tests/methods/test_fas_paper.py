"""The network of the FAS paper against its released layers, re-stated here without the package."""

import copy

import pytest
import torch
from tiny_models import FAMILIES, logits
from torch import nn
from torch.nn import functional

import fas
from fas.methods.fas_paper import FASPaper
from fas.stages.align_paper import AlignPaper
from fas.surgery.replace import populations, spiking_layers

T = 5
# By family: the activations that the released code replaces, in the order of the sites.
PLACES = {
    "gpt2": ["transformer.h.0.mlp.act", "transformer.h.1.mlp.act"],
    "bert_classifier": [
        "bert.encoder.layer.0.intermediate.intermediate_act_fn",
        "bert.encoder.layer.1.intermediate.intermediate_act_fn",
        "bert.pooler.activation",
    ],
}


class Spike(torch.autograd.Function):
    """[x ≥ 0], backwards a triangle of half-width 1."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1 - ctx.saved_tensors[0].abs()).clamp(min=0)


class ReleasedIF(nn.Module):
    """QCFS with L = T of a batch; or soft-reset IF neurons of T batches, one behind the other."""

    def __init__(self, threshold, v_init):
        super().__init__()
        self.thresh, self.v_init = nn.Parameter(threshold.detach().clone()), nn.Parameter(v_init.detach().clone())
        self.spiking, self.seen = True, None

    def forward(self, x):
        if not self.spiking:
            self.seen = ((x / self.thresh).clamp(0, 1) * T + 0.5).floor() / T * self.thresh
            return self.seen
        membrane, out = self.v_init * self.thresh, []
        for current in x.view(T, -1, *x.shape[1:]):
            membrane = membrane + current
            spike = Spike.apply(membrane - self.thresh) * self.thresh
            membrane = membrane - spike
            out.append(spike)
        self.seen = torch.stack(out).mean(0)
        return torch.cat(out)


class Released(nn.Module):
    """A dense model with ``ReleasedIF`` for its activations, every step of a sample a row of the batch."""

    def __init__(self, dense, converted, places):
        super().__init__()
        self.model = dense
        # The corrections of biases are ours.
        for path, layer in spiking_layers(converted).items():
            layer.correction.data.zero_()
            assert torch.equal(dense.get_submodule(path).weight, layer.weight)
        self.neurons = [ReleasedIF(p.threshold, p.v_init) for p in populations(converted).values()]
        for place, neuron in zip(places, self.neurons, strict=True):
            dense.set_submodule(place, neuron)

    def run(self, batch, spiking):
        for neuron in self.neurons:
            neuron.spiking = spiking
        folds = T if spiking else 1
        rows = {name: value.repeat(folds, *[1] * (value.ndim - 1)) for name, value in batch.items()}
        answer = self.model(**rows).logits
        return answer.view(folds, -1, *answer.shape[1:]).mean(0)


def both(name):
    family = FAMILIES[name]
    dense = family.build().double()
    model = fas.convert(copy.deepcopy(dense), FASPaper(timesteps=T), calibration=[family.batch(seed=3)]).double()
    for population in populations(model).values():
        population.double()
        # Not only thresholds: fine calibration moves v_0 too.
        population.v_init.data = torch.linspace(0.2, 0.8, population.v_init.numel(), dtype=torch.float64)
    return model, Released(dense, model, PLACES[name]), {**family.batch(rows=3, seed=5)}


@pytest.mark.parametrize("name", PLACES)
def test_it_is_the_released_network(name):
    model, released, batch = both(name)
    assert [site.activation for site in model.sites] == PLACES[name]
    assert (model.schedule, model.operators, model.levels) == ("online", "instant", T)
    with torch.no_grad():
        # Float64: both sum the same numbers in another order.
        torch.testing.assert_close(logits(model, batch), released.run(batch, True), rtol=1e-9, atol=1e-9)
        for population in populations(model).values():
            population.v_init.data.fill_(0.5)
        quantised = logits(model, batch, network="quantised")
        torch.testing.assert_close(quantised, released.run(batch, False), rtol=1e-9, atol=1e-9)
    assert float((quantised - logits(model, batch, network="ann")).abs().max()) > 1e-3


@pytest.mark.parametrize("name", PLACES)
def test_its_losses_are_the_released_ones_with_their_gradients(name):
    model, released, batch = both(name)
    with torch.no_grad():
        target = released.run(batch, False)
        targets = [neuron.seen for neuron in released.neurons]
    answer = released.run(batch, True)
    expected = errors = sum(functional.mse_loss(n.seen, t) for n, t in zip(released.neurons, targets, strict=True))
    if name == "gpt2":
        student, teacher = answer[:, :-1].log_softmax(-1), target[:, :-1].softmax(-1)
        expected = expected + functional.kl_div(student, teacher, reduction="batchmean")
    expected.backward()

    stage = model.fas_config.recipe.losses()
    assert type(stage) is AlignPaper
    students, layers = [], populations(model).values()

    def keep(population, arguments, output):
        students.append(output.view(T, -1, *output.shape[1:]).mean(0))

    handles = [population.register_forward_hook(keep) for population in layers]
    ours = model(**batch).logits
    for handle in handles:
        handle.remove()
    loss = stage.objective(model, students, targets, ours, target, None)
    loss.backward()
    # The KL is computed in float32.
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    if name == "gpt2":
        mask = torch.ones_like(batch["input_ids"])
        mask[0, -3:] = 0
        seen = mask[:, :-1].bool()
        kept = errors.detach() + functional.kl_div(student[seen], teacher[seen], reduction="sum").detach() / len(mask)
        masked = stage.objective(model, students, targets, ours, target, mask).detach()
        assert float(masked) == pytest.approx(float(kept), rel=1e-4) and float(masked) < 0.99 * float(loss.detach())
    for population, neuron in zip(layers, released.neurons, strict=True):
        # Ours is learned as ln θ: ∂/∂ln θ = θ ∂/∂θ.
        torch.testing.assert_close(
            population.log_threshold.grad, neuron.thresh.grad * neuron.thresh, rtol=1e-3, atol=1e-6
        )
        torch.testing.assert_close(population.v_init.grad, neuron.v_init.grad, rtol=1e-3, atol=1e-6)
        assert float(population.log_threshold.grad.abs().max()) > 1e-4


def test_a_pooler_without_a_layer_behind_it_keeps_its_activation():
    sites = FASPaper().select(FAMILIES["bert_mlm"].build())
    assert len(sites) == 2 and all(site.activation for site in sites)

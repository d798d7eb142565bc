"""Stage 1 of rate norm layers for transformers: against a plain loop over the network of rates, and its control."""

import copy

import pytest
import torch
from tiny_models import FAMILIES
from torch.nn import functional

from fas.conversion import convert
from fas.errors import NotCalibratedError
from fas.methods.rate_norm import RateNorm
from fas.stages.finetune_rates import FinetuneRates
from fas.surgery.replace import populations
from fas.training.finetuning import finetune, language_modelling, tuned

ROWS = (torch.arange(12) * torch.randint(1, 4, (8, 1), generator=torch.Generator().manual_seed(0))) % 40
DATA = language_modelling(ROWS)


def build(family):
    """Return a tiny model without dropout, which training turns on and a plain loop could not repeat."""
    model = FAMILIES[family].build()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def converted(family, **options):
    method = RateNorm(timesteps=4, coverage="mlp", fit_epochs=1, replace_activation=True, **options)
    return convert(build(family), method, calibration=[{"input_ids": ROWS[:4]}])


class Clip(torch.nn.Module):
    """θ · clip(ReLU(x)/θ, 0, 1)."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold = threshold

    def forward(self, x):
        return x.relu().minimum(self.threshold)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_weights_are_trained_at_the_thresholds_of_stage_two(family, tmp_path):
    model = converted(family)
    thresholds = {path: p.threshold.detach().clone() for path, p in populations(model).items()}
    # The same network without the library: the activation in front of each site becomes the clip.
    plain = build(family)
    for site in model.sites:
        plain.set_submodule(site.activation, Clip(thresholds[site.path]))
    assert all(torch.equal(a, plain.state_dict()[n]) for n, a in model.state_dict().items() if n in plain.state_dict())
    settings = FinetuneRates(max_steps=3, batch_size=8, learning_rate=1e-3, scheduler="constant")
    plain.eval()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(3):
        logits = plain(input_ids=ROWS).logits[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1), ROWS[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
    record = tuned(settings, model, DATA, output_dir=tmp_path, eval_dataset=DATA)
    assert record.stage == "finetune_rates" and record.results["eval_loss_after"] < record.results["eval_loss_before"]
    trained, untouched = model.state_dict(), build(family).state_dict()
    for name, wanted in plain.state_dict().items():
        # Rows come in another order. A key's bias has no gradient but what rounding leaves, which AdamW scales up to a
        # part of a step; steps are 1e-3.
        torch.testing.assert_close(trained[name], wanted, rtol=0, atol=2e-4)
    assert any(not torch.equal(trained[name], untouched[name]) for name in untouched)
    assert all(torch.equal(p.threshold, thresholds[path]) for path, p in populations(model).items())


def test_thresholds_follow_the_running_maximum(tmp_path):
    model = converted("opt", scale=1.0)
    settings = FinetuneRates(scale=0.5, max_steps=1, batch_size=8, learning_rate=1e-12)
    tuned(settings, model, DATA, output_dir=tmp_path)
    share, plain = torch.tensor(0.5).sigmoid(), build("opt")
    seen = {}

    class Watch(torch.nn.Module):
        def __init__(self, path):
            super().__init__()
            self.path = path

        def forward(self, x):
            seen[self.path] = share * x.relu().max()
            return x.relu().minimum(seen[self.path])

    for site in model.sites:
        plain.set_submodule(site.activation, Watch(site.path))
    with torch.no_grad():
        plain(input_ids=ROWS)
    for path, population in populations(model).items():
        # Nothing is learned at that rate; the maximum of one batch, ln θ in float32.
        torch.testing.assert_close(population.threshold.detach(), seen[path], rtol=1e-5, atol=0)
        assert float(population.v_init.detach()) == 0


def test_the_control_is_trained_beside_it(tmp_path):
    model = converted("gpt2")
    before = copy.deepcopy(model.state_dict())
    record, control = finetune(model, DATA, FinetuneRates(max_steps=2, batch_size=4), output_dir=tmp_path)
    assert record.results["steps"] == record.results["control_steps"] == 2
    assert type(control) is type(build("gpt2"))
    name = "transformer.h.0.mlp.c_fc.weight"
    assert not torch.equal(control.state_dict()[name], before[name])
    assert not torch.equal(control.state_dict()[name], model.state_dict()[name])


def test_it_refuses_thresholds_that_were_never_set(tmp_path):
    model = convert(build("opt"), RateNorm(coverage="mlp"))
    with pytest.raises(NotCalibratedError, match="has no thresholds yet, which fine-tuning starts from"):
        tuned(FinetuneRates(), model, DATA, output_dir=tmp_path)

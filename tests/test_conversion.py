"""The verbs on models: convert, calibrate, revert, and what they refuse."""

import pytest
import torch
from tiny_models import FAMILIES, linear_layers, logits

import fas
from fas.errors import CalibrationError, CheckpointError, NotCalibratedError, SiteError
from fas.surgery.replace import populations, spiking_layers


def test_the_same_object_comes_back():
    model = FAMILIES["gpt2"].build()
    assert fas.convert(model) is model
    assert fas.revert(model) is model


def test_verbs_stay_verbs():
    # Once, importing a module of the same name put it in the place of the function.
    for _ in range(2):
        fas.revert(fas.convert(FAMILIES["gpt2"].build()))
    for name in fas.__all__:
        assert not type(getattr(fas, name)).__name__ == "module"


def test_the_default_is_every_linear_layer_at_eight_steps():
    model = fas.convert(FAMILIES["gpt2"].build())
    assert model.fas_config.recipe.neuron == "adaptive_digit"
    # The levels of the quantised network follow from the steps at conversion, and are stated from then on.
    assert model.fas_config.recipe == fas.FAS(levels=975) and model.fas_config.method == "fas"
    assert (model.timesteps, model.levels, model.network) == (8, 975, "snn")
    assert linear_layers(model) == set() and model.records == []


def test_convert_calibrates_where_there_is_data():
    family, told = FAMILIES["gpt2"], []
    model = fas.convert(family.build(), calibration=[family.batch()], progress=lambda *what: told.append(what))
    assert all(population.is_set for population in populations(model).values())
    assert [record.stage for record in model.records] == ["calibrate"] and len(told) == len(model.sites)


def test_calibrating_later_is_the_same():
    family = FAMILIES["gpt2"]
    one = fas.convert(family.build(), calibration=[family.batch()])
    other = fas.convert(family.build())
    (record,) = fas.calibrate(other, [family.batch()])
    assert other.records == [record]
    ours, theirs = one.state_dict(), other.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("settings", [{}, {"execution": "stepped"}, {"network": "quantised"}])
def test_a_model_without_thresholds_does_not_run(settings):
    model = fas.convert(FAMILIES["gpt2"].build())
    with pytest.raises(NotCalibratedError, match=r"site .* has no thresholds yet: run fas\.calibrate\(model, data\)"):
        logits(model, FAMILIES["gpt2"].batch(), **settings)
    # The dense network inside does.
    assert bool(logits(model, FAMILIES["gpt2"].batch(), network="ann").isfinite().all())


def test_excluded_layers_stay_dense():
    model = fas.convert(FAMILIES["gpt2"].build(), fas.FAS(exclude=("lm_head", "*.attn.*")))
    assert linear_layers(model) == {"lm_head"} | {
        f"transformer.h.{i}.attn.{n}" for i in (0, 1) for n in ("c_attn", "c_proj")
    }


def test_converting_twice():
    model = fas.convert(FAMILIES["gpt2"].build())
    with pytest.raises(ValueError, match=r"converted already; fas\.revert\(model\) gives the dense one back"):
        fas.convert(model)


@pytest.mark.parametrize("verb", ["calibrate", "revert"])
def test_a_dense_model(verb):
    arguments = ([FAMILIES["gpt2"].batch()],) if verb == "calibrate" else ()
    with pytest.raises(ValueError, match="GPT2LMHeadModel is not converted"):
        getattr(fas, verb)(FAMILIES["gpt2"].build(), *arguments)


def test_a_failed_conversion_leaves_the_model_dense():
    model = FAMILIES["gpt2"].build()
    cls, layers = type(model), linear_layers(model)
    with pytest.raises(SiteError, match="both signs, which soft_reset_if cannot carry"):
        fas.convert(model, fas.FAS(neuron="soft_reset_if"))
    assert type(model) is cls and linear_layers(model) == layers
    fas.convert(model)


def test_a_generation_configuration_that_cannot_be_saved_is_refused_before_the_work():
    model, told = FAMILIES["gpt2"].build(), []
    converted = fas.convert(FAMILIES["gpt2"].build())
    for one, work in ((model, fas.convert), (converted, fas.calibrate)):
        one.generation_config.update(do_sample=False, temperature=0.5)
        before = [name for name, _ in one.named_modules()]
        with pytest.raises(CheckpointError, match=r"generation configuration of GPT2LMHeadModel is invalid.*correct"):
            work(one, calibration=[FAMILIES["gpt2"].batch()], progress=lambda *what: told.append(what))
        assert not told and [name for name, _ in one.named_modules()] == before


def test_failed_calibration_can_be_repeated():
    family = FAMILIES["gpt2"]
    model = fas.convert(family.build())
    with pytest.raises(CalibrationError, match="at least one batch"):
        fas.calibrate(model, [])
    assert model.records == []
    fas.calibrate(model, [family.batch()])
    assert bool(logits(model, family.batch()).isfinite().all())


def test_reverting_keeps_weights_trained_meanwhile():
    model = fas.convert(FAMILIES["opt"].build(), calibration=[FAMILIES["opt"].batch()])
    model.train()
    model(**FAMILIES["opt"].batch(), labels=FAMILIES["opt"].batch()["input_ids"]).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.eval()
    after = logits(model, FAMILIES["opt"].batch(), network="ann")
    fas.revert(model)
    with torch.no_grad():
        assert torch.equal(model(**FAMILIES["opt"].batch()).logits, after)
    assert not spiking_layers(model)


def test_a_reverted_model_saves_and_loads_as_a_dense_one(tmp_path):
    family = FAMILIES["gpt2"]
    model = family.build()
    with torch.no_grad():
        before = model(**family.batch()).logits
    fas.revert(fas.convert(model, calibration=[family.batch()]))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert not hasattr(loaded.config, "quantization_config")
    with torch.no_grad():
        assert torch.equal(loaded(**family.batch()).logits, before)


def test_convert_revert_convert():
    family = FAMILIES["gpt2"]
    model = fas.convert(family.build(), fas.FAS(coverage="mlp"), calibration=[family.batch()])
    fas.revert(model)
    fas.convert(model, fas.FAS(timesteps=4), calibration=[family.batch()])
    fresh = fas.convert(family.build(), fas.FAS(timesteps=4), calibration=[family.batch()])
    assert torch.equal(logits(model, family.batch()), logits(fresh, family.batch()))


def test_the_probe_may_be_given():
    family = FAMILIES["gpt2"]
    model = fas.convert(family.build(), fas.FAS(coverage="mlp"), probe=family.batch())
    assert [site.path for site in model.sites] == family.mlp_paths
    with pytest.raises(ValueError, match="specify either input_ids"):
        fas.convert(family.build(), probe={"nothing": torch.ones(1)})

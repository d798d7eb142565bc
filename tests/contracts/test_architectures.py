"""What holds for every architecture: the dense model inside, the executions that agree, files, padding."""

import pytest
import torch
import transformers
from made import once
from tiny_models import FAMILIES, linear_layers, logits, spike_counts

import fas
from fas.types import OPERANDS

# Full coverage holds the sites of the others; where these end is asked of one model of each kind.
PARTS = [(name, coverage) for name in ("gpt2", "opt", "bert_mlm", "t5", "vit") for coverage in ("mlp", "linear")]
CASES = [*((name, "full") for name in FAMILIES), *PARTS]
# Those that load, add positions, normalise or multiply by attention in ways of their own.
HALVES = ["gpt2", "opt", "gpt_neox", "llama", "gemma3", "bloom", "bert_mlm", "albert", "t5", "bart", "vit"]
CAUSAL = [name for name, family in FAMILIES.items() if family.causal]


def calibrate(family, model, coverage, **options):
    method = fas.FAS(coverage=coverage, timesteps=5, **options)
    return fas.convert(model, method, calibration=[family.batch(padded=True), family.batch(seed=2)])


@once
def calibrated(name, coverage, **options):
    return calibrate(FAMILIES[name], FAMILIES[name].build(), coverage, **options)


@pytest.mark.parametrize(("name", "coverage"), CASES)
def test_conversion_keeps_the_dense_model_inside(name, coverage):
    family, inputs = FAMILIES[name], FAMILIES[name].batch(padded=True)
    plain = family.build()
    cls, names = type(plain), list(plain.state_dict())
    with torch.no_grad():
        before = plain(**inputs).logits
    model = calibrated(name, coverage)
    assert type(model).__name__ == cls.__name__ and isinstance(model, cls)
    assert torch.equal(logits(model, inputs, network="ann"), before)
    assert not torch.equal(logits(model, inputs), before)
    assert set(names) <= set(model.state_dict())

    fas.revert(model)
    assert type(model) is cls and list(model.state_dict()) == names
    assert not hasattr(model.config, "quantization_config")
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, before)


@pytest.mark.parametrize("name", FAMILIES)
def test_sites_are_the_layers_one_expects(name):
    family = FAMILIES[name]
    model = family.build()
    mlp = fas.FAS(coverage="mlp").select(model)
    assert [site.path for site in mlp] == family.mlp_paths
    assert {site.role for site in mlp} == {"mlp"} and not any(site.also for site in mlp)

    sites = fas.FAS(coverage="linear").select(model)
    layers = [path for site in sites for path in site.layers]
    assert len(layers) == len(set(layers)) and set(layers) == linear_layers(model)
    assert len(sites) == family.linear
    assert [site.path for site in sites if site.role == "mlp"] == family.mlp_paths
    # ReLU and nothing else is replaced: its output is coded without sign.
    replaced = [site for site in sites if site.activation]
    assert replaced == [site for site in sites if not site.signed]
    assert (replaced[0].activation if replaced else None) == family.activation


@pytest.mark.parametrize("name", FAMILIES)
def test_full_coverage_adds_the_factors_of_attention(name):
    model = FAMILIES[name].build()
    linear, full = fas.FAS(coverage="linear").select(model), fas.FAS(coverage="full").select(model)
    assert [site for site in full if site.role not in OPERANDS] == linear
    # Two blocks, one attention each; ALBERT's block is one, run twice; a decoder looks at its encoder too.
    modules = {"albert": 1, "t5": 6, "t5_gated": 6, "bart": 6}.get(name, 2)
    # BLOOM writes attention out and reads the values last.
    order = [*OPERANDS] if name != "bloom" else ["query", "key", "attention_weight", "value"]
    assert [site.role for site in full if site.role in OPERANDS] == order * modules
    assert len({site.path for site in full}) == len(full)


@pytest.mark.parametrize(("name", "coverage"), CASES)
def test_executions_and_schedules_agree(name, coverage):
    inputs = FAMILIES[name].batch(padded=True)
    model = calibrated(name, coverage)
    collapsed = logits(model, inputs, kernels="torch")
    # One formula, one order of operations: equal to the bit.
    assert torch.equal(logits(model, inputs, network="quantised"), collapsed)
    chosen, stepped = logits(model, inputs), logits(model, inputs, execution="stepped")
    # The native product of a few rows adds in another order: as below.
    torch.testing.assert_close(chosen, collapsed, rtol=1e-4, atol=2e-5 * float(collapsed.abs().max()))
    # Float32: T passes are summed instead of one. A few roundings of 6e-8, relative to the largest of up to
    # a hundred summands, through eight layers, unless a sum lies within them of a level (none does here).
    torch.testing.assert_close(stepped, collapsed, rtol=1e-4, atol=2e-5 * float(collapsed.abs().max()))


@pytest.mark.parametrize(("name", "coverage"), CASES)
def test_counts_and_graded_online_spikes_are_exact(name, coverage):
    family, inputs = FAMILIES[name], FAMILIES[name].batch(padded=True)
    model = calibrated(name, coverage, neuron="clipped_count").double()
    if family.image:
        inputs = {key: value.double() for key, value in inputs.items()}
    collapsed, stepped = (spike_counts(model, inputs, execution=e) for e in ("collapsed", "stepped"))
    assert list(collapsed) == [site.path for site in model.sites] == list(stepped)
    for path, calls in collapsed.items():
        assert len(calls) == len(stepped[path])
        for one, other in zip(calls, stepped[path], strict=True):
            assert torch.equal(one, other)
    assert sum(float(call.sum()) for calls in collapsed.values() for call in calls) > 0
    # Float64, though some norms of transformers compute in float32: equal unless that rounding differs.
    answer = logits(model, inputs)
    torch.testing.assert_close(logits(model, inputs, schedule="online"), answer, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "coverage"), CASES)
def test_a_saved_model_comes_back_to_the_bit(name, coverage, tmp_path):
    family, inputs = FAMILIES[name], FAMILIES[name].batch(padded=True)
    model = calibrated(name, coverage)
    model.timesteps, model.levels, model.operators = 3, 7, "instant"
    answer = logits(model, inputs)
    model.save_pretrained(tmp_path / "snn")
    cls = getattr(transformers, family.model)
    for loader in (cls, getattr(transformers, family.auto)):
        loaded = loader.from_pretrained(tmp_path / "snn")
        assert isinstance(loaded, cls) and type(loaded).__name__ == family.model
        assert (loaded.timesteps, loaded.levels) == (3, 7)
        assert (loaded.schedule, loaded.operators, loaded.execution) == ("layerwise", "instant", "collapsed")
        assert loaded.sites == model.sites
        assert [record.to_dict() for record in loaded.records] == [r.to_dict() for r in model.records]
        assert torch.equal(logits(loaded, inputs), answer)
        # The weights file lists what the model has, no more and no less.
        ours, theirs = model.state_dict(), loaded.state_dict()
        assert list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", HALVES)
def test_half_precision_models_run(name, tmp_path):
    family, inputs = FAMILIES[name], FAMILIES[name].batch(padded=True)
    if family.image:
        inputs = {key: value.bfloat16() for key, value in inputs.items()}
    family.build().save_pretrained(tmp_path / "dense")
    # Not .bfloat16(), which would cast the frequencies of rotary positions too.
    loader = getattr(transformers, family.auto)
    dense = loader.from_pretrained(tmp_path / "dense", dtype=torch.bfloat16)
    model = calibrate(family, dense, "full")
    for settings in ({}, {"execution": "stepped"}, {"network": "quantised"}):
        answer = logits(model, inputs, **settings)
        assert answer.dtype == torch.bfloat16 and bool(answer.isfinite().all())
    # Thresholds keep float32, in the file too.
    model.save_pretrained(tmp_path / "snn")
    loaded = loader.from_pretrained(tmp_path / "snn", dtype=torch.bfloat16)
    ours = {k: v for k, v in loaded.named_parameters() if ".neuron." in k or k.endswith("correction")}
    assert len(ours) > len(model.sites) and {v.dtype for v in ours.values()} == {torch.float32}
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))


def alone(inputs, row, keep):
    return {key: value[row : row + 1, keep] for key, value in inputs.items()}


@pytest.mark.parametrize("schedule", ["layerwise", "online"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", CAUSAL)
def test_padding_does_not_change_a_row(name, side, schedule):
    family = FAMILIES[name]
    model = calibrated(name, "full", neuron="signed_if")
    if name != "bloom":  # transformers' own answer is NaN for a left-padded row in float64
        model.double()
    inputs = family.batch()
    mask = torch.ones_like(inputs["input_ids"])
    keep = slice(0, 6) if side == "right" else slice(3, 9)
    mask[0] = 0
    mask[0, keep] = 1
    inputs["attention_mask"] = mask
    positions = {}
    if name not in ("opt", "bloom"):  # these count positions in the mask themselves
        positions = {"position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}
    padded = logits(model, {**inputs, **positions}, schedule=schedule)[:1, keep]
    single = logits(model, alone(inputs, 0, keep), schedule=schedule)
    # Masked keys weigh exactly zero; what remains is the order of sums in float64 (BLOOM: float32) and the
    # float32 in which some models turn positions into sines: far below the gap to the next level.
    margin = 2e-5 if name == "bloom" else 1e-6
    torch.testing.assert_close(padded, single, rtol=margin, atol=margin * float(single.abs().max()))


@pytest.mark.parametrize("name", ["bert_mlm", "roberta", "distilbert", "albert", "t5", "bart"])
def test_padding_does_not_change_a_row_of_an_encoder(name):
    family = FAMILIES[name]
    model = calibrated(name, "full").double()
    inputs = family.batch(padded=True)
    single = {key: value[:1] for key, value in inputs.items()}
    for key in ("input_ids", "attention_mask"):
        single[key] = single[key][:, :5]
    padded = logits(model, inputs)[:1]
    padded = padded[:, :5] if name in ("bert_mlm", "albert") else padded
    # As above.
    expected = logits(model, single)
    torch.testing.assert_close(padded, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))

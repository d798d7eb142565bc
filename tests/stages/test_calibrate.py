"""Calibration: what it leaves of the error, what its switches do, what it says."""

import functools
import logging

import made
import pytest
import torch
from tiny_models import FAMILIES, logits

import fas
from fas.calibration.sensitivity import sensitivities
from fas.errors import CalibrationError
from fas.methods.qcfs_only import QCFSOnly
from fas.stages.calibrate import Calibrate
from fas.stages.finetune import Finetune
from fas.stages.set_thresholds import SetThresholds
from fas.surgery.replace import neuron_parameters, populations, spiking_layers
from fas.training.finetuning import finetune, language_modelling
from fas.training.losses import divergence
from fas.types import Record

# Few levels: what is calibrated, and by how much, shows.
converted = functools.partial(made.converted, seeds=(), neuron="ternary_phase")


def batches(name="gpt2"):
    family = FAMILIES[name]
    return [family.batch(rows=4, length=12, seed=1), family.batch(padded=True, seed=2)]


def mean_outputs(model, data, network):
    """Mean output per layer over the rows that are no padding, in one pass of the whole network."""
    sums, rows = {}, 0
    for batch in data:
        outputs, handles = {}, []
        for path, layer in spiking_layers(model).items():

            def keep(_, __, output, path=path, outputs=outputs):
                outputs[path] = output

            handles.append(layer.register_forward_hook(keep))
        logits(model, batch, network=network)
        for handle in handles:
            handle.remove()
        mask = batch["attention_mask"].flatten().bool()
        rows += int(mask.sum())
        for path, output in outputs.items():
            sums[path] = sums.get(path, 0) + output.flatten(0, -2)[mask].double().sum(0)
    return {path: total / rows for path, total in sums.items()}


def inputs(model, data, network):
    """Inputs of every layer in one pass of the whole network, [rows that are no padding, in]."""
    seen, handles = {path: [] for path in spiking_layers(model)}, []
    for path, layer in spiking_layers(model).items():
        handles.append(layer.register_forward_hook(lambda _, given, __, path=path: seen[path].append(given[0])))
    found = {path: [] for path in seen}
    for batch in data:
        logits(model, batch, network=network)
        mask = batch["attention_mask"].flatten().bool()
        for path, given in seen.items():
            found[path] += list(given.pop().flatten(0, -2)[mask])
    for handle in handles:
        handle.remove()
    return {path: torch.stack(rows).double() for path, rows in found.items()}


@pytest.mark.parametrize(
    ("name", "neuron"),
    [(name, "signed_if") for name in ("gpt2", "opt", "llama", "gemma3", "bert_mlm")]
    + [("gpt2", "ternary_phase"), ("llama", "outlier_aware")],
)
def test_the_bias_takes_the_mean_error_of_at_most_half_a_level(name, neuron):
    # Every layer, fed with the spikes it receives in the finished network, against the dense network.
    # Few levels, so that there is an error to speak of.
    steps = 2 if neuron == "ternary_phase" else 4
    model, data = converted(name, neuron=neuron, timesteps=steps), batches(name)
    fas.calibrate(model, data)
    dense, spiking = (inputs(model, data, network) for network in ("ann", "snn"))
    found, beyond, largest = populations(model), 0, 0.0
    for site in model.sites:
        population = found[site.path]
        half = population.threshold.double() / population.neuron.resolution(steps) / 2
        for path in site.layers:
            shift = torch.zeros_like(half)
            sent = population(spiking[path].float()).double()
            for wanted, given in zip(population.replaced(dense[path]), sent, strict=True):
                shift += (wanted - given).clamp(-half, half) / len(dense[path])
                beyond += int(((wanted - given).abs() > half).sum())
            layer = spiking_layers(model)[path]
            with torch.no_grad():
                expected = layer.response(shift.float())
            # Float32 means over some 70 rows and sums over 50 inputs.
            torch.testing.assert_close(layer.correction, expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))
            largest = max(largest, float(expected.abs().max()))
    assert beyond > 0 and largest > 1e-4


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert_mlm", "t5", "albert", "vit"])
def test_calibration_brings_the_answers_closer(name):
    family = FAMILIES[name]
    data = [family.batch(rows=8, length=16, seed=s) for s in (1, 2)]
    fresh = family.batch(rows=8, length=16, seed=9)
    errors = {}
    for label, options in {"maximum": {"coarse": False, "fine": False}, "calibrated": {}}.items():
        model = converted(name, neuron="signed_if", **options)
        fas.calibrate(model, data)
        dense = logits(model, fresh, network="ann")
        errors[label] = float((logits(model, fresh) - dense).norm() / dense.norm())
    assert errors["calibrated"] < 0.95 * errors["maximum"]


def test_coarse_alone_sets_one_threshold_per_layer():
    model = converted(fine=False)
    (record,) = fas.calibrate(model, batches())
    for population in populations(model).values():
        assert population.log_threshold.shape == (population.channels,)
        assert len(population.threshold.unique()) == 1
        assert bool((population.offset == 0).all()) and bool((population.v_init == 0.5).all())
    assert all(bool((layer.correction == 0).all()) for layer in spiking_layers(model).values())
    assert (record.settings["coarse"], record.settings["fine"]) == (True, False)


@pytest.mark.parametrize("coarse", [True, False])
def test_fine_sets_parameters_per_channel(coarse):
    model = converted(coarse=coarse)
    fas.calibrate(model, batches())
    for population in populations(model).values():
        assert len(population.threshold.unique()) > 1 and len(population.offset.unique()) > 1
    assert all(bool((layer.correction != 0).any()) for layer in spiking_layers(model).values())


def test_uncentred_codes_keep_silence_silent():
    model = converted(centred=False)
    fas.calibrate(model, batches())
    assert all(bool((population.offset == 0).all()) for population in populations(model).values())


def test_one_parameter_per_tensor():
    model = converted(granularity="tensor")
    fas.calibrate(model, batches())
    for population in populations(model).values():
        assert population.threshold.shape == () and population.is_set
    assert all(bool((layer.correction != 0).any()) for layer in spiking_layers(model).values())


def test_neither_keeps_thresholds_that_are_set():
    model, data = converted(), batches()
    SetThresholds(rule="percentile", percentile=90).run(model, data)
    before = {path: p.threshold.clone() for path, p in populations(model).items()}
    Calibrate(coarse=False, fine=False).run(model, data)
    for path, population in populations(model).items():
        # Through a logarithm and back: two roundings of float32.
        torch.testing.assert_close(population.threshold, before[path], rtol=1e-6, atol=0)


def test_thresholds_by_maximum_clip_nothing():
    model, (batch, *_) = converted(coarse=False, fine=False), batches()
    fas.calibrate(model, [batch])
    head = populations(model)["lm_head"]
    seen = []
    handle = head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    logits(model, batch, network="ann")
    handle.remove()
    torch.testing.assert_close(head.threshold, seen[0].abs().flatten(0, -2).amax(0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("percentile", [0, -1, 100.1])
def test_impossible_percentiles(percentile):
    with pytest.raises(ValueError, match=f"percentile is {percentile}; expected a number above 0"):
        SetThresholds(rule="percentile", percentile=percentile)


def test_a_site_that_never_fires_is_named(caplog):
    model = converted("opt")
    with torch.no_grad():
        model.get_submodule("model.decoder.layers.1.fc1").bias.fill_(-1e3)
    with caplog.at_level(logging.WARNING, logger="fas"):
        (record,) = fas.calibrate(model, batches("opt"))
    assert "site model.decoder.layers.1.fc2 never fires on the calibration data" in caplog.text
    assert caplog.text.count("never fires") == 1
    assert record.sites["model.decoder.layers.1.fc2"]["spikes_per_neuron"] == 0
    assert bool(logits(model, FAMILIES["opt"].batch()).isfinite().all())


def test_the_record_says_what_was_done():
    model, data, told = converted(coverage="mlp"), batches(), []
    (record,) = fas.calibrate(model, data, progress=lambda *what: told.append(what))
    assert model.records == [record] and record.stage == "calibrate"
    assert list(record.sites) == [site.path for site in model.sites]
    # 4 rows of 12, and 3 of 9 of which one lacks 4.
    assert record.results["tokens"] == 4 * 12 + 3 * 9 - 4
    errors = [figures["relative_error"] for figures in record.sites.values()]
    assert record.results["mean_relative_error"] == pytest.approx(sum(errors) / len(errors))
    assert all(0 < error < 1 for error in errors)
    assert told[-1] == (model.sites[-1].path, 2, 2)
    with fas.record(model) as spikes:
        for batch in data:
            logits(model, {k: v for k, v in batch.items() if k == "input_ids"})
    first = model.sites[0].path
    # The record counts rows without padding, the recording all.
    assert spikes.sites[first].spikes_per_neuron == pytest.approx(record.sites[first]["spikes_per_neuron"], rel=0.1)


def test_calibrating_again_starts_over():
    model, data = converted(), batches()
    fas.calibrate(model, data)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    fas.calibrate(model, data)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert len(model.records) == 2


@pytest.mark.parametrize("data", [[], ()])
def test_no_data(data):
    with pytest.raises(CalibrationError, match="no calibration data: at least one batch is needed"):
        fas.calibrate(converted(), data)


def test_a_dense_model():
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel is not converted; call fas\.convert first"):
        fas.calibrate(FAMILIES["gpt2"].build(), batches())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gpt2", {"neuron": "phase"}),
        ("llama", {"neuron": "signed_if", "coverage": "mlp"}),
        ("opt", {"neuron": "ternary_phase", "granularity": "tensor", "coverage": "mlp"}),
        ("bert_mlm", {"neuron": "outlier_aware", "coverage": "linear"}),
        ("t5", {"neuron": "phase", "coverage": "mlp"}),
    ],
    ids=str,
)
def test_dearer_spikes_are_fewer(name, options):
    # Without padding, which calibration does not see and which may fire.
    data, spent, expected = [FAMILIES[name].batch(rows=6, length=12)], [], []
    for price in (1e-3, 1.0, 1e6):
        model = converted(name, spike_price=price, **options)
        record = fas.calibrate(model, data)[0]
        with fas.record(model) as spikes:
            for batch in data:
                logits(model, batch)
        spent.append(spikes.spikes_per_neuron)
        expected.append(record.results["expected_divergence"])
    assert spent[0] > 1.1 * spent[1] and spent[2] == 0
    assert expected == sorted(expected) and record.settings["spike_price"] == 1e6


def test_factors_of_attention_pay_no_price():
    thresholds = []
    for price in (0.0, 1.0):
        model = converted(neuron="signed_digit", timesteps=8, coverage="full", spike_price=price)
        fas.calibrate(model, batches())
        thresholds.append({path: p.threshold.detach().clone() for path, p in populations(model).items()})
    free, priced = thresholds
    # The first of all sites receives the same, whatever the price.
    attention = next(path for path in free if path.endswith("operands.query"))
    assert float((priced[attention] / free[attention]).log().abs().max()) < 0.5
    first = next(iter(free))
    assert float((priced[first] / free[first]).log().abs().max()) > 1


def test_no_price_changes_nothing():
    data = batches()
    results = []
    for options in ({}, {"spike_price": 0.0}):
        model = converted(**options)
        results.append((fas.calibrate(model, data)[0].results, model.state_dict()))
    assert "expected_divergence" not in results[0][0]
    assert all(torch.equal(value, results[1][1][name]) for name, value in results[0][1].items())


def test_the_expected_divergence_is_about_the_one_that_occurs():
    family = FAMILIES["gpt2"]
    data = [family.batch(rows=32, length=12, seed=s) for s in (1, 2)]
    for price in (0.003, 0.03):
        model = converted(neuron="phase", timesteps=5, spike_price=price)
        expected = fas.calibrate(model, data)[0].results["expected_divergence"]
        pairs = [(logits(model, batch), logits(model, batch, network="ann")) for batch in data]
        occurred = sum(float(divergence(*pair)) for pair in pairs) / len(pairs)
        # A sum over sites of errors taken as uncorrelated, to second order: measured 0.98 at both prices.
        assert 0.85 < occurred / expected < 1.15, price


@pytest.mark.parametrize(("neuron", "steps"), [("signed_digit", 8), ("phase", 5)], ids=["by range", "by error"])
def test_the_expected_divergence_leaves_the_mean_error_out_where_a_bias_takes_it(neuron, steps):
    # At so high a price much of the error of a silent channel is its mean. Codes by range have no correction.
    data = [FAMILIES["gpt2"].batch(rows=8, length=12)]
    model = converted(neuron=neuron, timesteps=steps, spike_price=30.0)
    record = fas.calibrate(model, data)[0]
    corrected = any(bool(layer.correction.any()) for layer in spiking_layers(model).values())
    assert corrected == (neuron == "phase")
    expected, costs = dict[str, float](), sensitivities(model, data)

    def add(population, arguments, output):
        # Every layer that reads the site calls its neurons.
        wrong = (output - arguments[0]).flatten(0, -2).detach()
        error = wrong.var(0, correction=0) if corrected else wrong.square().mean(0)
        expected[population.path] = float((costs[population.path] * error).sum())

    for population in populations(model).values():
        population.register_forward_hook(add)
    logits(model, data[0])
    assert record.results["expected_divergence"] == pytest.approx(sum(expected.values()), rel=1e-3)


@pytest.mark.parametrize("price", [-0.1, float("nan"), float("inf"), True, "much"])
def test_prices_that_are_none_are_refused(price):
    with pytest.raises(ValueError, match=r"spike_price is .*a number of at least 0"):
        Calibrate(spike_price=price)
    with pytest.raises(ValueError, match=r"spike_price is .*a number of at least 0"):
        fas.FAS(spike_price=price)


def test_fine_calibration_pays_the_price():
    with pytest.raises(ValueError, match=r"spike_price is 0\.1, which fine calibration pays: set fine=True"):
        Calibrate(spike_price=0.1, fine=False)


# Behind stage 1


def trained(tmp_path, **options):
    """A model whose weights, thresholds and corrections have moved."""
    model = converted(timesteps=4, **options)
    fas.calibrate(model, batches())
    rows = torch.cat([batch["input_ids"] for batch in batches()[:1]])
    settings = Finetune(max_steps=8, learning_rate=3e-3, threshold_learning_rate=3e-2)
    finetune(model, language_modelling(rows), settings, output_dir=tmp_path, control=False)
    model.eval()
    return model


def own(model):
    return {name: value.clone() for name, value in model.state_dict().items() if name in neuron_parameters(model)}


def test_at_the_trained_levels_calibration_leaves_what_was_trained(tmp_path):
    model = trained(tmp_path)
    before, answer = own(model), logits(model, batches()[0], network="snn")
    record = fas.calibrate(model, batches())[-1]
    for name, value in own(model).items():
        # Spikes and levels are the same numbers up to rounding, and so is their mean error zero.
        assert torch.allclose(value, before[name], atol=1e-5), name
        assert "correction" in name or torch.equal(value, before[name])
    assert torch.allclose(logits(model, batches()[0], network="snn"), answer, atol=1e-4)
    assert record.results["mean_relative_error"] < 1e-6
    assert any(value.abs().max() > 1e-3 for name, value in before.items() if "correction" in name)


def test_at_other_time_steps_the_quantised_network_is_followed(tmp_path):
    model = trained(tmp_path)
    expected, before = mean_outputs(model, batches(), "quantised"), own(model)
    quantised, dense = (logits(model, batches()[0], network=network) for network in ("quantised", "ann"))
    model.timesteps = 2
    fas.calibrate(model, batches())
    found = mean_outputs(model, batches(), "snn")
    for path, mean in expected.items():
        assert torch.allclose(found[path], mean, atol=1e-4 * float(mean.abs().max()) + 1e-5), path
    assert all(torch.equal(value, before[name]) for name, value in own(model).items() if "correction" not in name)
    spiking = logits(model, batches()[0], network="snn")
    assert divergence(spiking, quantised) < divergence(spiking, dense)


def test_the_dense_network_is_followed_where_that_is_asked_for(tmp_path):
    model, other = trained(tmp_path / "a"), trained(tmp_path / "b")
    Calibrate(teacher="ann").run(model, batches())
    other.records.clear()
    fas.calibrate(other, batches())
    assert all(torch.equal(a, b) for a, b in zip(own(model).values(), own(other).values(), strict=True))
    with pytest.raises(ValueError, match="teacher is 'dense'; choose one of auto, quantised, ann"):
        Calibrate(teacher="dense")


def test_layers_that_run_several_times_hear_spikes_from_themselves(tmp_path):
    model = converted("albert", timesteps=4)
    fas.calibrate(model, batches("albert"))
    model.records.append(Record("finetune", {}, {}, trains=True))
    before = own(model)
    fas.calibrate(model, batches("albert"))
    assert all(torch.allclose(value, before[name], atol=1e-5) for name, value in own(model).items())


def test_a_calibration_that_ends_early_leaves_the_trained_network(tmp_path):
    model = trained(tmp_path)
    model.timesteps, before = 2, own(model)

    def stop(_, done, total):
        if done == total - 1:
            raise MemoryError

    with pytest.raises(MemoryError):
        fas.calibrate(model, batches(), progress=stop)
    assert all(torch.equal(value, before[name]) for name, value in own(model).items())


def test_a_second_correction_says_what_it_follows(tmp_path, caplog):
    model = trained(tmp_path)
    fas.calibrate(model, batches())
    assert "corrected" not in caplog.text
    fas.calibrate(model, batches())
    assert "the biases have been corrected since the network was trained" in caplog.text


def test_what_belongs_before_training_does_not_run_behind_it(tmp_path):
    model = trained(tmp_path, rotate=True)
    answer = logits(model, batches()[0], network="snn")
    assert [record.stage for record in fas.calibrate(model, batches())] == ["calibrate"]
    assert torch.allclose(logits(model, batches()[0], network="snn"), answer, atol=1e-4)
    for method in (QCFSOnly(timesteps=4, coverage="mlp"), fas.FAS(timesteps=4, coarse=False, fine=False)):
        model = fas.convert(FAMILIES["opt"].build(), method, calibration=batches("opt"))
        model.records.append(Record("finetune", {}, {}, trains=True))
        with pytest.raises(
            ValueError, match="sets thresholds again, and these have been trained: run the model as it is"
        ):
            fas.calibrate(model, batches("opt"))

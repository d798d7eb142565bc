"""A converted model behind the interface of the model it was: settings, steps, copies."""

import copy

import pytest
import torch
from made import converted
from tiny_models import FAMILIES, logits, spike_counts
from transformers import AutoModelForCausalLM

import fas
from fas.errors import FASError
from fas.runtime.parts import Folding
from fas.runtime.spiking import SpikingModel
from fas.surgery.replace import populations, spiking_layers


@pytest.mark.parametrize("name", ["timesteps", "levels"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "8", None])
def test_numbers_of_steps_and_levels(name, value):
    model = converted()
    with pytest.raises(ValueError, match=f"{name} is {value!r}; .* whole number"):
        setattr(model, name, value)
    setattr(model, name, 1)
    assert getattr(model, name) == getattr(model.simulation, name) == 1


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("network", "ann, quantised, snn"),
        ("schedule", "layerwise, online"),
        ("operators", "difference, instant"),
        ("execution", "collapsed, stepped"),
    ],
)
def test_settings_list_their_choices(name, choices):
    model = converted(neuron="signed_if")
    with pytest.raises(ValueError, match=f"{name} is 'fast'; choose one of {choices}"):
        setattr(model, name, "fast")
    for choice in choices.split(", "):
        setattr(model, name, choice)
        assert getattr(model, name) == getattr(model.simulation, name) == choice


def test_settings_take_effect_at_the_next_call():
    model, batch = converted(neuron="signed_if"), FAMILIES["gpt2"].batch()
    four = logits(model, batch)
    model.timesteps = 32
    many = logits(model, batch)
    dense = logits(model, batch, network="ann")
    assert float((many - dense).norm()) < 0.9 * float((four - dense).norm())
    model.timesteps = 4
    assert torch.equal(logits(model, batch), four)


def test_other_steps_than_the_calibrated_are_told_of_once(caplog, tmp_path):
    model, batch = converted(neuron="signed_if"), FAMILIES["gpt2"].batch()
    model.save_pretrained(tmp_path / "m")
    # That few tokens calibrate is said where no earlier test has made this model.
    caplog.clear()
    for snn in (model, AutoModelForCausalLM.from_pretrained(tmp_path / "m")):
        snn.timesteps = 4
        assert not caplog.records
        snn.timesteps = 8
        snn.timesteps = 2
        (told,) = caplog.messages
        assert "T = 8 with the thresholds of T = 4, which costs quality: fas.calibrate(model, data)" in told
        caplog.clear()
    fresh = fas.convert(FAMILIES["gpt2"].build(), fas.FAS(timesteps=4, neuron="signed_if"))
    fresh.timesteps = 2  # nothing has been calibrated yet
    fas.calibrate(fresh, [batch])
    fresh.timesteps = 2
    assert "thresholds of T" not in caplog.text
    fresh.timesteps = 4
    assert "T = 4 with the thresholds of T = 2" in caplog.text


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("neuron", ["signed_if", "clipped_count"])
def test_any_number_of_steps_in_every_schedule(steps, neuron):
    model, batch = converted(timesteps=steps, neuron=neuron, dtype=torch.float64), FAMILIES["gpt2"].batch()
    layerwise = logits(model, batch)
    # Float64: T sums instead of one.
    torch.testing.assert_close(logits(model, batch, execution="stepped"), layerwise, rtol=1e-9, atol=1e-9)
    online = logits(model, batch, schedule="online")
    assert online.shape == layerwise.shape and bool(online.isfinite().all())
    if steps == 1 or neuron == "clipped_count":  # one step has no order
        torch.testing.assert_close(online, layerwise, rtol=1e-9, atol=1e-9)


def test_the_phase_code():
    model, batch = converted(neuron="phase", dtype=torch.float64), FAMILIES["gpt2"].batch()
    assert model.levels == 15
    collapsed = logits(model, batch)
    torch.testing.assert_close(logits(model, batch, execution="stepped"), collapsed, rtol=1e-9, atol=1e-9)
    assert torch.equal(logits(model, batch, network="quantised"), collapsed)
    with pytest.raises(FASError, match=r"Phase fires after its whole input only.*set model\.schedule = 'layerwise'"):
        logits(model, batch, schedule="online")


@pytest.mark.parametrize("neuron", ["signed_digit", "ternary_phase", "phase", "outlier_aware"])
def test_digits_refuse_the_online_schedule_when_it_is_set(neuron, tmp_path):
    model = converted(neuron=neuron)
    with pytest.raises(FASError, match=r"fires after its whole input only.*'layerwise', or convert with neuron="):
        model.schedule = "online"
    assert model.schedule == "layerwise"
    model.save_pretrained(tmp_path / "m")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "m").schedule == "layerwise"


@pytest.mark.parametrize("name", ["gpt2", "bert_classifier", "t5", "vit"])
@pytest.mark.parametrize("operators", ["difference", "instant"])
def test_the_last_step_is_the_answer(name, operators):
    model, batch = converted(name, neuron="signed_if"), FAMILIES[name].batch()
    model.schedule, model.operators = "online", operators
    with torch.no_grad():
        steps = model.logits_per_step(**batch)
    answer = logits(model, batch)
    assert steps.shape == (4, *answer.shape)
    # Instant answers are means of up to four, of the whole or running: float32 in another order.
    torch.testing.assert_close(steps[-1], answer, rtol=1e-5, atol=1e-5 * float(answer.abs().max()))
    if operators == "difference":
        assert torch.equal(steps[-1], answer)
    assert not torch.equal(steps[0], steps[-1])


def test_instant_steps_are_running_means():
    model, batch = converted(timesteps=3, neuron="signed_if"), FAMILIES["gpt2"].batch()
    model.schedule, model.operators = "online", "instant"
    raw = []
    handle = model.lm_head.register_forward_hook(lambda _, __, output: raw.append(output.detach()))
    with torch.no_grad():
        steps = model.logits_per_step(**batch)
    handle.remove()
    values = raw[0].unflatten(0, (3, 3))
    for t in range(3):
        torch.testing.assert_close(steps[t], values[: t + 1].mean(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({}, "network 'snn', schedule 'layerwise'"), ({"schedule": "online", "network": "ann"}, "network 'ann'")],
)
def test_steps_need_the_online_schedule(settings, message):
    model = converted(neuron="signed_if")
    for name, value in settings.items():
        setattr(model, name, value)
    with pytest.raises(ValueError, match=rf"{message}.*set model\.schedule = 'online'"):
        model.logits_per_step(**FAMILIES["gpt2"].batch())


def test_an_error_between_steps_leaves_no_trace():
    model, batch = converted(neuron="signed_if"), FAMILIES["gpt2"].batch()
    model.schedule = "online"
    answer = logits(model, batch)
    with pytest.raises(IndexError, match="out of range"), torch.no_grad():
        model.logits_per_step(input_ids=torch.full((1, 3), 10**6))
    assert model.simulation.steps is None
    assert torch.equal(logits(model, batch), answer)


def test_hidden_states_are_reduced_too():
    model, batch = converted(neuron="clipped_count", dtype=torch.float64), FAMILIES["gpt2"].batch()
    with torch.no_grad():
        layerwise = model(**batch, output_hidden_states=True)
        model.schedule = "online"
        online = model(**batch, output_hidden_states=True)
    assert type(online) is type(layerwise)
    for ours, theirs in zip(online.hidden_states, layerwise.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_embeddings_instead_of_ids():
    model, batch = converted(neuron="signed_if"), FAMILIES["gpt2"].batch()
    model.schedule = "online"
    embedded = {"inputs_embeds": model.get_input_embeddings()(batch["input_ids"]).detach()}
    assert torch.equal(logits(model, embedded), logits(model, {"input_ids": batch["input_ids"]}))


def test_inputs_by_position():
    model, batch = converted(neuron="signed_if"), FAMILIES["gpt2"].batch()
    for schedule in ("layerwise", "online"):
        model.schedule = schedule
        with torch.no_grad():
            assert torch.equal(model(batch["input_ids"]).logits, model(input_ids=batch["input_ids"]).logits)


def test_no_input_says_how_many_rows():
    model = converted("bert_mlm", neuron="signed_if")
    model.schedule = "online"
    with pytest.raises(ValueError, match="cannot tell its size: pass input_ids"):
        model(attention_mask=torch.ones(1, 2))


def test_a_part_of_the_model_cannot_run_online():
    model = converted(neuron="signed_if")
    model.schedule = "online"
    with pytest.raises(FASError, match="ran outside the model's own forward"):
        model.transformer(**FAMILIES["gpt2"].batch())


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_copies_are_independent(name):
    model, batch = converted(name, neuron="signed_if"), FAMILIES[name].batch()
    answer = logits(model, batch)
    twin = copy.deepcopy(model)
    assert type(twin) is type(model) and twin.simulation is not model.simulation
    assert {id(p.simulation) for p in populations(twin).values()} == {id(twin.simulation)}
    assert torch.equal(logits(twin, batch), answer)
    twin.timesteps, twin.schedule = 2, "online"
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    assert (model.timesteps, model.schedule) == (4, "layerwise")
    assert torch.equal(logits(model, batch), answer)
    # The copy of a layer shares neurons with the copies of its neighbours, not with the original.
    ours = {id(p) for p in model.parameters()}
    assert not any(id(p) in ours for p in twin.parameters())
    for path, population in populations(twin).items():
        assert twin.get_submodule(path).population is population
    assert torch.equal(
        fas.revert(twin).state_dict()[(key := next(iter(model.state_dict())))], model.state_dict()[key] / 2
    )


def test_the_encoder_may_be_called_by_itself():
    model = converted("t5", neuron="clipped_count", dtype=torch.float64)
    batch = FAMILIES["t5"].batch()
    encoder = model.get_encoder()
    assert isinstance(encoder, Folding) and not isinstance(encoder, SpikingModel)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        layerwise = encoder(**inputs).last_hidden_state
        model.schedule = "online"
        steps = encoder(**inputs).last_hidden_state
    # A part hands its rows on, time-major; the last step is what the other schedule knows.
    assert steps.shape == (4 * 3, *layerwise.shape[1:])
    torch.testing.assert_close(steps[9:], layerwise, rtol=1e-9, atol=1e-9)


def test_compiled_names_and_docs_are_those_of_the_original():
    model = converted()
    cls = type(FAMILIES["gpt2"].build())
    assert type(model).__qualname__ == cls.__qualname__ and type(model).__module__ == cls.__module__
    assert type(converted()) is type(model)


# Speed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["kernels", "weights"])
def test_settings_of_speed_list_their_choices(setting):
    model = converted()
    with pytest.raises(ValueError, match=rf"{setting} is 'fast'; choose one of (auto, torch, cpu|float, int8)"):
        setattr(model, setting, "fast")
    setattr(model, setting, "auto" if setting == "kernels" else "int8")


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("neuron", ["signed_if", "clipped_count", "phase", "ternary_phase"])
def test_every_backend_and_execution_sends_the_same_spikes(name, neuron):
    model, batch = converted(name, neuron=neuron), FAMILIES[name].batch()
    model.kernels = "torch"
    expected = spike_counts(model, batch)
    model.kernels = "auto"
    assert_same_spikes(spike_counts(model, batch), expected)
    assert_same_spikes(spike_counts(model, batch, execution="stepped"), expected)


def assert_same_spikes(got, expected):
    assert got.keys() == expected.keys()
    for path, calls in got.items():
        for ours, theirs in zip(calls, expected[path], strict=True):
            assert torch.equal(ours, theirs), path


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_eight_bit_weights_are_near_and_say_how_near(name):
    model, batch = converted(name, timesteps=16, neuron="signed_if"), FAMILIES[name].batch()
    exact = logits(model, batch)
    errors = {path: layer.integers().error for path, layer in spiking_layers(model).items()}
    model.weights = "int8"
    near = logits(model, batch)
    assert errors.keys() == {path for site in model.sites for path in site.layers}
    # Uniform in ±1/2 steps of 1/127 of the largest weight of an output, of which the mean square is a few tenths.
    assert all(0 < error < 0.02 for error in errors.values())
    relative = float((near - exact).norm() / exact.norm())
    assert 0 < relative < 0.3  # counts flip behind an error of 1 % in 9 to 15 layers


def test_eight_bit_weights_with_a_cache_are_those_without():
    model, batch = converted(dtype=torch.float32), FAMILIES["gpt2"].batch()
    model.weights = "int8"
    with torch.inference_mode():
        whole = model(batch["input_ids"]).logits
        first = model(batch["input_ids"][:, :-1], use_cache=True)
        last = model(batch["input_ids"][:, -1:], past_key_values=first.past_key_values).logits
    # Products of one row and of many add up in another order; no count lies so near a decision here.
    torch.testing.assert_close(last, whole[:, -1:], rtol=1e-4, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert_mlm", "t5", "gemma3"])
@pytest.mark.parametrize("operators", ["difference", "instant"])
@pytest.mark.parametrize("coverage", ["mlp", "linear"])
def test_the_output_layer_runs_once_for_all_steps(name, operators, coverage):
    model, batch = converted(name, coverage=coverage, neuron="signed_if"), FAMILIES[name].batch()
    model.schedule, model.operators = "online", operators
    rows = []
    handle = model.get_output_embeddings().register_forward_hook(lambda _, __, output: rows.append(len(output)))
    answer = logits(model, batch)
    with torch.no_grad():
        steps = model.logits_per_step(**batch)
    handle.remove()
    assert rows == [3, 12]
    # The mean of four answers, or the answer to the mean: float32 in another order.
    torch.testing.assert_close(answer, steps[-1], rtol=1e-5, atol=1e-5 * float(answer.abs().max()))
    assert model.simulation.head is None


@pytest.mark.parametrize("operators", ["difference", "instant"])
def test_capped_logits_are_averaged_behind_the_cap(operators):
    model, batch = converted("gemma3", dtype=torch.float64, neuron="signed_if"), FAMILIES["gemma3"].batch()
    model.config.final_logit_softcapping = 0.1
    model.schedule, model.operators = "online", operators
    with torch.no_grad():
        steps = model.logits_per_step(**batch)
    torch.testing.assert_close(logits(model, batch), steps[-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "backend", "settings"),
    [
        ("gpt2", "aot_eager", {}),
        ("gpt2", "eager", {"network": "ann"}),
        ("gpt2", "eager", {"network": "quantised"}),
        # Stepped, and online with the other operators: test_static_cache.
        pytest.param(
            "llama", "aot_eager", {"schedule": "online", "operators": "instant", "timesteps": 3}, marks=pytest.mark.slow
        ),
    ],
)
def test_a_compiled_model_is_one_graph(name, backend, settings):
    model, batch = converted(name, neuron="signed_if"), FAMILIES[name].batch()
    for setting, value in settings.items():
        setattr(model, setting, value)
    expected = logits(model, batch)
    for population in populations(model).values():
        population._ready = False  # as after loading
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        answer = compiled(**batch, use_cache=False).logits
    # torch adds up the mean over steps, the kernels count.
    torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-5)


def test_compiling_an_uncalibrated_model_says_so():
    family = FAMILIES["gpt2"]
    model = fas.convert(family.build(), fas.FAS(timesteps=4))
    torch._dynamo.reset()
    with torch.no_grad(), pytest.raises(RuntimeError, match="has no thresholds yet"):
        torch.compile(model, fullgraph=True, backend="eager")(**family.batch(), use_cache=False)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("schedule", ["layerwise", "online"])
def test_blocks_computed_again_have_the_same_gradients(schedule, reentrant):
    batch = FAMILIES["gpt2"].batch()
    model, found = converted(neuron="signed_if").train(), []
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for again in (False, True):
        if again:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model.zero_grad()
        # Backward runs outside, under other settings.
        with model.simulation.using(schedule=schedule):
            loss = model(**batch, labels=batch["input_ids"], use_cache=False).loss
        loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert len(found[0]) > 30 and found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert torch.equal(found[1][name], gradient), name


def test_half_and_float_cast_the_model():
    batch = FAMILIES["gpt2"].batch()
    model = converted()
    answer = logits(model, batch)
    assert model.half() is model and model.dtype == torch.float16
    found = logits(model, batch)
    # Weights of 11 bits: some counts are one level off.
    assert found.dtype == torch.float16 and 0 < float((found - answer).abs().mean()) < 0.1 * float(answer.std())
    assert model.float() is model and logits(model, batch).dtype == torch.float32

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import FAMILIES, logits

import fas
from fas.calibration.teacher import Teacher
from fas.errors import CalibrationError
from fas.stages import align
from fas.stages.align import Align, _Best
from fas.stages.set_potential import SetPotential
from fas.surgery.replace import populations, spiking_layers
from fas.training.descent import mask_of
from fas.training.losses import alignment, divergence
from fas.types import V_INIT_MAX


@given(st.lists(st.lists(st.floats(-5, 5, width=32), min_size=3, max_size=3), min_size=2, max_size=5))
def test_divergence_is_the_sum_over_classes(rows):
    student = torch.tensor(rows)
    teacher = student.flip(0) * 0.5
    total = 0.0
    for s, t in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        norm_s, norm_t = (math.log(sum(math.exp(v) for v in row)) for row in (s, t))
        total += sum(math.exp(b - norm_t) * ((b - norm_t) - (a - norm_s)) for a, b in zip(s, t, strict=True))
    # float32 logits up to 5 in size: log-softmax rounds at 1e-6.
    assert float(divergence(student, teacher)) == pytest.approx(total / len(rows), abs=1e-5)


def test_divergence_counts_masked_positions_only():
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    mask = torch.tensor([[1, 0, 0], [0, 0, 1]])
    expected = (divergence(student[0, 0], teacher[0, 0]) + divergence(student[1, 2], teacher[1, 2])) / 2
    assert float(divergence(student, teacher, mask)) == pytest.approx(float(expected), rel=1e-5)


def test_alignment_is_relative():
    teacher = torch.randn(100, 4)
    # The teacher's mean explains nothing; a scale common to both changes nothing.
    assert float(alignment([teacher.mean().expand(100, 4)], [teacher])) == pytest.approx(1.0, rel=1e-5)
    noisy = teacher + 0.1
    one, other = alignment([noisy], [teacher]), alignment([noisy * 50], [teacher * 50])
    assert float(one) == pytest.approx(float(other), rel=1e-4)


@pytest.mark.parametrize("settings", [{}, {"schedule": "online", "operators": "instant"}])
def test_it_comes_closer_to_the_teacher_and_leaves_the_weights(settings):
    model = FAMILIES["gpt2"].build()
    # One batch, of which nothing is held out: what is asked is whether the descent works.
    data = [{"input_ids": torch.randint(1, 64, (16, 12))}]
    fas.convert(model, fas.FAS(timesteps=3, neuron="signed_if", **settings), calibration=data)
    weights = {n: p.clone() for n, p in model.named_parameters() if n.endswith("weight")}
    teacher = []
    with torch.no_grad(), model.simulation.using(network="ann"):
        teacher = [model(**batch).logits for batch in data]

    def distance():
        with torch.no_grad():
            pairs = zip(data, teacher, strict=True)
            return sum(float(divergence(model(**batch).logits, t)) for batch, t in pairs)

    # Thresholds twice too high: an error that training must undo in good part.
    for population in populations(model).values():
        population.log_threshold.data += math.log(2)
    before = distance()
    record = Align(epochs=20, learning_rate=4e-2).run(model, data)
    assert distance() < 0.8 * before
    assert record.results["loss_last"] < record.results["loss_first"]
    assert all(torch.equal(weights[n], p) for n, p in model.named_parameters() if n in weights)
    assert all(p.requires_grad for p in model.parameters())


def test_what_it_refuses():
    with pytest.raises(ValueError, match="teacher is 'me'"):
        Align(teacher="me")
    with pytest.raises(ValueError, match="epochs 0"):
        Align(epochs=0)
    with pytest.raises(CalibrationError, match="at least one batch"):
        Align().run(fas.convert(FAMILIES["gpt2"].build()), [])


def test_a_decoders_own_mask_says_which_answers_count(monkeypatch):
    model, seen = fas.convert(FAMILIES["t5"].build()), []
    inputs = FAMILIES["t5"].batch(rows=2, length=6)
    words = {name: torch.ones_like(inputs["input_ids"]) for name in ("attention_mask", "decoder_attention_mask")}
    words["decoder_attention_mask"][1, 3:] = 0
    batch = {**inputs, **words, "decoder_input_ids": inputs["input_ids"]}
    fas.calibrate(model, [batch])
    monkeypatch.setattr(align, "divergence", lambda logits, target, mask: seen.append(mask) or logits.sum())
    Align(learning_rate=1e-9).run(model, [batch])
    assert seen and all(torch.equal(mask, words["decoder_attention_mask"]) for mask in seen)


def test_a_potential_just_below_the_threshold_is_left_there():
    # Training may end at the bound of v_0; the losses must not pull it down by a bound of their own.
    model = fas.convert(FAMILIES["opt"].build(), fas.FAS(timesteps=3, coverage="mlp"))
    data = [FAMILIES["opt"].batch()]
    fas.calibrate(model, data)
    for population in populations(model).values():
        population.v_init.data.fill_(V_INIT_MAX)
    Align(learning_rate=1e-12).run(model, data)
    assert all(bool((population.v_init == V_INIT_MAX).all()) for population in populations(model).values())


def test_every_bound_of_the_potential_is_the_same():
    model = fas.convert(FAMILIES["opt"].build(), fas.FAS(timesteps=3, coverage="mlp"))
    # 1 - 1e-12 is 1 in float32: a neuron would start at its threshold.
    SetPotential(1 - 1e-12).run(model, [])
    assert all(bool((population.v_init == V_INIT_MAX).all()) for population in populations(model).values())


def exact_online(**options):
    """A model of graded spikes, which ends online with the counts of the layerwise schedule."""
    model = FAMILIES["gpt2"].build()
    data = [{"input_ids": torch.randint(1, 64, (4, 12))} for _ in range(2)]
    fas.convert(model, fas.FAS(timesteps=4, neuron="clipped_count", coverage="mlp"), calibration=data)
    return model.double(), data


def test_the_loss_is_alignment_and_weighted_divergence_at_the_end_of_the_window():
    model, (batch, _) = exact_online()
    teacher, outputs, layers = Teacher(model, "ann"), {}, spiking_layers(model).values()
    for network in ("ann", "snn"):
        seen = outputs[network] = []
        hooks = [layer.register_forward_hook(lambda _, __, out, to=seen: to.append(out)) for layer in layers]
        with torch.no_grad(), model.simulation.using(network=network):
            outputs[network + " logits"] = model(**batch).logits
        for hook in hooks:
            hook.remove()
    pairs = list(zip(outputs["snn"], outputs["ann"], strict=True))
    apart = sum(float((s - t).square().mean() / t.var(correction=0)) for s, t in pairs) / len(pairs)
    log_teacher, log_student = (outputs[f"{n} logits"].log_softmax(-1) for n in ("ann", "snn"))
    kl = float((log_teacher.exp() * (log_teacher - log_student)).sum(-1).mean())
    assert apart > 1e-4 and kl > 1e-6
    for schedule in ("layerwise", "online"):
        for weight in (0.0, 1.0, 1000.0):
            with model.simulation.using(network="snn", schedule=schedule):
                found = float(Align(weight=weight)._loss(model, teacher, batch).detach())
            # Both terms are computed in float32.
            assert found == pytest.approx(apart + weight * kl, rel=1e-3)


def test_what_an_encoder_reads_masks_no_answer_of_a_decoder():
    ids, answers, mask = torch.ones(2, 3, dtype=torch.int64), torch.zeros(2, 3, 5), torch.tensor([[1, 1, 0], [1, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": mask}
    assert mask_of(inputs, answers) is mask and mask_of({**inputs, "decoder_input_ids": ids}, answers) is None
    assert mask_of(inputs, answers[:, 0]) is None


def test_a_single_batch_is_trained_to_the_end_and_potentials_stay_below_the_threshold():
    model, (batch, _) = exact_online()
    record = Align(learning_rate=3.0, epochs=4).run(model, [batch])
    v_init = torch.cat([population.v_init.detach().flatten() for population in populations(model).values()])
    assert "divergence_after" not in record.results
    assert 0 <= float(v_init.min()) and float(v_init.max()) <= V_INIT_MAX and (v_init != 0.5).any()


@pytest.mark.parametrize("number", [1, 2, 25])
def test_held_out_batches_are_not_trained_on(number, monkeypatch):
    (model, _), trained, losses, loss = exact_online(), [], [], Align._loss
    data = [{"input_ids": torch.full((1, 4), i)} for i in range(number)]

    def watched(stage, model, teacher, batch):
        trained.append(int(batch["input_ids"][0, 0]))
        losses.append(loss(stage, model, teacher, batch))
        return losses[-1]

    monkeypatch.setattr(Align, "_loss", watched)
    results = Align(learning_rate=1e-6, epochs=1).run(model, data).results
    assert sorted(trained) == ([0] if number == 1 else [i for i in range(number) if i % 8])
    # Of 21 losses the first two and the last two.
    tenth = 2 if number == 25 else 1
    for key, part in (("loss_first", losses[:tenth]), ("loss_last", losses[-tenth:])):
        assert results[key] == pytest.approx(float(torch.stack(part).mean().detach()), rel=1e-6)


@pytest.mark.parametrize(("rate", "better"), [(3.0, False), (3e-2, True)])
def test_it_keeps_what_is_best_on_held_out_batches(rate, better):
    model, data = exact_online()
    for population in populations(model).values():
        population.log_threshold.data += math.log(8) if better else 0.0
    data = [{"input_ids": torch.randint(1, 64, (4, 12))} for _ in range(9)]
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def held_out():
        with torch.no_grad():
            pairs = [(logits(model, b), logits(model, b, network="ann")) for b in (data[0], data[8])]
        return sum(float(divergence(*pair)) for pair in pairs) / 2

    start = held_out()
    results = Align(learning_rate=rate, epochs=3).run(model, data).results
    assert results["divergence_before"] == pytest.approx(start, rel=1e-6)
    assert results["divergence_after"] == pytest.approx(held_out(), rel=1e-6)
    if better:
        assert held_out() < 0.9 * start
    else:
        # Steps as long as these only harm: all is as it was.
        assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())


def test_of_the_steps_that_are_looked_at_the_best_is_kept():
    step = torch.nn.Parameter(torch.zeros(()))
    # Any other step is a KeyError: a look costs passes over all that is held out.
    figures = {0: 5.0, 2: 1.0, 4: 3.0, 5: 2.0}
    best = _Best([step], lambda: figures[int(step.detach())], every=2)
    for now in range(1, 6):
        step.data.fill_(now)
        best.look()
    best.restore()
    assert (float(step.detach()), best.first, best.least) == (2.0, 5.0, 1.0)

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import FAMILIES

import fas
from fas.errors import CalibrationError
from fas.stages.align import Align
from fas.stages.set_potential import SetPotential
from fas.surgery.replace import populations
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
    data = [{"input_ids": torch.randint(1, 64, (4, 12))} for _ in range(4)]
    fas.convert(model, fas.FAS(timesteps=3, **settings), calibration=data)
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
    record = Align(epochs=5, learning_rate=4e-2).run(model, data)
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

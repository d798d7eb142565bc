"""Stage 1 with a dense teacher: what is compared, what it changes, and that a run resumes with it."""

import copy
import dataclasses
import functools

import made
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES
from transformers import TrainerCallback

from fas.errors import DataError
from fas.stages.finetune import Finetune
from fas.training.distillation import Distillation
from fas.training.finetuning import finetune, language_modelling, tuned

ROWS = torch.randint(0, 40, (24, 12), generator=torch.Generator().manual_seed(0))
SETTINGS = Finetune(max_steps=4, learning_rate=1e-3, save_steps=2, distillation=1.0)


class Rows(torch.utils.data.Dataset):
    def __init__(self, inputs, labels):
        self.inputs, self.labels = inputs, labels

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return {"input_ids": self.inputs[index], "labels": self.labels[index]}


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 3:
            control.should_training_stop = control.should_save = True


converted = functools.partial(made.converted, timesteps=2, neuron="signed_if", seeds=(1,))


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def by_hand(teacher, student, labels, shifted):
    """Sum p (ln p − ln q) token by token in Python floats."""
    total, count = 0.0, 0
    for b in range(labels.shape[0]):
        for position in range(labels.shape[1] - shifted):
            if int(labels[b, position + shifted]) == -100:
                continue
            p, q = teacher[b, position].double().softmax(-1), student[b, position].double().softmax(-1)
            total += sum(float(a) * (float(a.log()) - float(c.log())) for a, c in zip(p, q, strict=True))
            count += 1
    return total / count


@settings(max_examples=settings.default.max_examples // 10)
@given(weight=st.floats(0, 1), seed=st.integers(0, 2**16), name=st.sampled_from(["gpt2", "bert_mlm"]))
def test_the_loss_is_that_of_a_loop_over_targets(weight, seed, name):
    torch.manual_seed(seed)
    teacher = FAMILIES[name].build()
    inputs = dict(FAMILIES[name].batch())
    labels = inputs["input_ids"].clone()
    labels[torch.rand(labels.shape) < 0.3] = -100
    labels[:, -1] = 1
    with torch.no_grad():
        target = teacher(**inputs).logits
    student = target + torch.randn_like(target)
    found = Distillation(teacher, weight).mixed(torch.tensor(2.0), {**inputs, "labels": labels}, student)
    expected = (1 - weight) * 2 + weight * by_hand(target, student, labels, int(name == "gpt2"))
    # Logarithms of softmax in float32, a handful of tokens.
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_with_the_whole_weight_only_the_places_of_labels_count(tmp_path):
    labels = ROWS.clone()
    labels[:, 5] = -100
    other = torch.where(labels == -100, labels, (labels + 1) % 40)
    models = []
    for i, targets in enumerate((labels, other)):
        models.append(converted())
        tuned(SETTINGS, models[-1], Rows(ROWS, targets), output_dir=tmp_path / str(i))
    assert same(*models)


def test_the_quantised_network_comes_nearer_to_the_dense_one_whose_weights_stay(tmp_path):
    model = converted()
    dense = copy.deepcopy(model)
    dense.network = "ann"
    model.network = "quantised"

    def distance():
        with torch.no_grad():
            inputs = {"input_ids": ROWS, "labels": ROWS}
            return float(Distillation(dense, 1.0).mixed(torch.zeros(()), inputs, model(input_ids=ROWS).logits))

    before = distance()
    tuned(dataclasses.replace(SETTINGS, max_steps=6), model, language_modelling(ROWS), output_dir=tmp_path)
    assert distance() < 0.9 * before


def test_the_control_learns_from_labels_alone(tmp_path):
    controls, models = [], []
    for share in (0.0, 0.5):
        model = converted()
        settings = Finetune(max_steps=3, distillation=share)
        controls.append(finetune(model, language_modelling(ROWS), settings, output_dir=tmp_path / str(share))[1])
        models.append(model)
    assert same(*controls) and not same(*models)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_an_interrupted_run_ends_alike(tmp_path, name):
    inputs = FAMILIES[name].batch()["input_ids"].repeat(8, 1)
    data = Rows(inputs, inputs.clone())
    whole, first, second = converted(name), converted(name), converted(name)
    tuned(SETTINGS, whole, data, output_dir=tmp_path / "whole")
    tuned(SETTINGS, first, data, output_dir=tmp_path / "parts", callbacks=[Stop()])
    tuned(SETTINGS, second, data, output_dir=tmp_path / "parts")
    assert same(second, whole) and not same(first, whole)


def test_what_has_no_classes_to_compare_is_refused():
    teacher = Distillation(FAMILIES["gpt2"].build(), 0.5)
    for shape, labels in (((4, 1), torch.rand(4)), ((2, 9, 40), ROWS[:2])):
        with pytest.raises(DataError, match=r"logits \[.*\] for labels \[.*\]: distillation compares the classes"):
            teacher.mixed(torch.zeros(()), {"input_ids": ROWS[:2], "labels": labels}, torch.zeros(shape))

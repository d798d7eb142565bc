"""The loss in the online schedule is that of the logits the model answers with."""

import inspect

import pytest
import torch
import transformers
from tiny_models import FAMILIES, logits
from tiny_vision_language import VISION_LANGUAGE

import fas
from fas.runtime.loss import loss_from_output

TIMESTEPS = 4


def online(model, batch, **options):
    model = fas.convert(
        model, fas.FAS(timesteps=TIMESTEPS, schedule="online", neuron="signed_if", **options), calibration=[batch]
    )
    return model.eval()


def labelled(ids, share=3):
    """Labels with some positions to ignore."""
    labels = ids.clone()
    labels.view(-1)[::share] = -100
    return labels


def mean_over_known(log_probabilities, labels):
    """Cross entropy by its definition, without torch's."""
    known = labels != -100
    picked = log_probabilities[known].gather(-1, labels[known].unsqueeze(-1))
    return -picked.mean()


def loss_and_logits(model, batch, labels):
    with torch.no_grad():
        output = model(**batch, labels=labels)
    assert torch.equal(output.logits, logits(model, batch))
    return output.loss, output.logits


@pytest.mark.parametrize("operators", ["difference", "instant"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "gemma3", "bloom"])
def test_causal(name, operators):
    family = FAMILIES[name]
    batch = family.batch(padded=True)
    model = online(family.build(), batch, operators=operators)
    labels = labelled(batch["input_ids"])
    loss, answer = loss_and_logits(model, batch, labels)
    expected = mean_over_known(answer[:, :-1].log_softmax(-1), labels[:, 1:])
    # Float32 means in another order.
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["bert_mlm", "albert"])
def test_masked(name):
    family = FAMILIES[name]
    batch = family.batch(padded=True)
    labels = labelled(batch["input_ids"], share=2)
    loss, answer = loss_and_logits(online(family.build(), batch), batch, labels)
    torch.testing.assert_close(loss, mean_over_known(answer.log_softmax(-1), labels), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize("given", [True, False])
def test_sequence_to_sequence(name, given):
    family = FAMILIES[name]
    batch = family.batch(padded=True)
    model = online(family.build(), batch)
    labels = labelled(batch["decoder_input_ids"])
    if not given:
        batch = {**batch, "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels)}
    answer = logits(model, batch)
    if not given:
        del batch["decoder_input_ids"]
    with torch.no_grad():
        output = model(**batch, labels=labels)
    assert torch.equal(output.logits, answer)
    expected = mean_over_known(answer.log_softmax(-1), labels)
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["bert_classifier", "roberta", "distilbert", "vit"])
def test_classification(name):
    family = FAMILIES[name]
    batch, labels = family.batch(), torch.tensor([2, 0, 1])
    loss, answer = loss_and_logits(online(family.build(num_labels=3), batch), batch, labels)
    torch.testing.assert_close(loss, mean_over_known(answer.log_softmax(-1), labels), rtol=1e-5, atol=1e-6)


def test_regression():
    family = FAMILIES["bert_classifier"]
    batch, labels = family.batch(), torch.tensor([0.5, -1.0, 2.0])
    loss, answer = loss_and_logits(online(family.build(num_labels=1), batch), batch, labels)
    torch.testing.assert_close(loss, (answer.squeeze(1) - labels).square().mean())
    several = labels.unsqueeze(1).repeat(1, 2)
    model = online(family.build(num_labels=2, problem_type="regression"), batch)
    loss, answer = loss_and_logits(model, batch, several)
    torch.testing.assert_close(loss, (answer - several).square().mean())


@pytest.mark.parametrize("problem_type", [None, "multi_label_classification"])
def test_several_labels(problem_type):
    family = FAMILIES["bert_classifier"]
    batch, labels = family.batch(), torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0]])
    model = online(family.build(num_labels=3, problem_type=problem_type), batch)
    loss, answer = loss_and_logits(model, batch, labels)
    chance = answer.sigmoid()
    expected = -(labels * chance.log() + (1 - labels) * (1 - chance).log()).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("labels", [torch.tensor([1, 0, 1]), torch.tensor([[0.0, 1], [1, 1], [1, 0]])])
def test_it_is_the_loss_transformers_computes(labels):
    # The dense network's own loss, of the same logits.
    family = FAMILIES["roberta"]
    batch = family.batch()
    model = online(family.build(num_labels=2), batch)
    with torch.no_grad(), model.simulation.using(network="ann"):
        output = model(**batch, labels=labels)
    model.config.problem_type = None
    expected = output.loss
    torch.testing.assert_close(loss_from_output(model, output, labels).loss, expected)


def test_gradients_reach_weights_and_thresholds():
    family = FAMILIES["gpt2"]
    batch = family.batch()
    model = online(family.build(), batch)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    for name in ("transformer.h.0.mlp.c_fc.weight", "transformer.h.0.mlp.c_fc.neuron.log_threshold"):
        gradient = dict(model.named_parameters())[name].grad
        assert gradient is not None and bool(gradient.isfinite().all()) and bool((gradient != 0).any())


def test_a_head_whose_loss_is_its_own():
    config = transformers.BertConfig(**FAMILIES["bert_mlm"].options, vocab_size=100)
    batch = FAMILIES["bert_mlm"].batch()
    model = online(transformers.BertForTokenClassification(config).eval(), batch)
    message = "BertForTokenClassification has a loss of kind 'ForTokenClassification'.*call the model without labels"
    with pytest.raises(ValueError, match=message):
        model(**batch, labels=torch.zeros_like(batch["input_ids"]))


@pytest.mark.parametrize("name", [name for name, family in VISION_LANGUAGE.items() if family.generates])
def test_images_and_text(name):
    family = VISION_LANGUAGE[name]
    batch = family.batch()
    batch.setdefault("labels", labelled(batch["input_ids"]))
    model = fas.convert(family.build(), fas.FAS(timesteps=TIMESTEPS, neuron="clipped_count"), calibration=[batch])
    with torch.no_grad():
        layerwise = model(**batch).loss
        model.schedule = "online"
        loss = model(**batch).loss
    # Graded spikes end alike; float32.
    torch.testing.assert_close(loss, layerwise, rtol=1e-4, atol=1e-5)


# transformers' GPT-2 does not run with such a configuration.
@pytest.mark.parametrize(
    ("name", "by"),
    [("gpt2", "argument"), ("t5", "argument"), ("t5", "configuration"), ("bert_classifier", "configuration")],
)
def test_a_tuple_has_the_loss_in_front(name, by):
    family = FAMILIES[name]
    batch = family.batch()
    model = online(family.build(), batch)
    labels = (
        torch.tensor([0, 1, 0]) if name == "bert_classifier" else batch.get("decoder_input_ids", batch["input_ids"])
    )
    named = {"return_dict": False} if by == "argument" else {}
    with torch.no_grad():
        output = model(**batch, labels=labels)
        model.config.return_dict = by == "argument"
        as_tuple, without = model(**batch, labels=labels, **named), model(**batch, **named)
    assert type(as_tuple) is type(without) is tuple
    assert torch.equal(as_tuple[0], output.loss) and torch.equal(as_tuple[1], output.logits)
    assert torch.equal(without[0], output.logits)


def test_labels_by_position_are_seen():
    family = FAMILIES["gpt2"]
    batch = family.batch()
    model = online(family.build(), batch)
    names = list(inspect.signature(model.forward).parameters)
    position = names.index("labels")
    arguments = [batch.get(name) for name in names[:position]]
    with torch.no_grad():
        by_position = model(*arguments, batch["input_ids"])
        by_name = model(**batch, labels=batch["input_ids"])
    assert torch.equal(by_position.loss, by_name.loss)
    assert torch.equal(by_position.logits, by_name.logits)

"""Copies of converted models: by pickle, by torch, in memory; and a vocabulary of another size."""

import copy
import io
import pickle

import made
import pytest
import torch
from tiny_models import FAMILIES, logits

import fas


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"pickle": lambda model: pickle.loads(pickle.dumps(model)), "torch": saved, "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize(
    ("family", "coverage"), [("gpt2", "linear"), ("llama", "full"), ("bloom", "full"), ("t5", "linear")]
)
def test_a_copy_answers_alike_and_stands_for_itself(how, family, coverage):
    model, batch = made.converted(family, coverage=coverage), FAMILIES[family].batch()
    again = COPIES[how](model)
    assert torch.equal(logits(again, batch), logits(model, batch))
    again.timesteps = 2
    assert (model.timesteps, again.fas_config.to_dict()["timesteps"]) == (4, 2)
    assert isinstance(again, type(FAMILIES[family].build())) and again.sites == model.sites
    assert type(fas.revert(again)) is type(FAMILIES[family].build())


def test_a_plain_network_can_be_pickled():
    batches = [{"x": torch.rand(2, 3, 10, 10, dtype=torch.float64)} for i in range(2)]
    model = made.converted_chain(fas.FAS(timesteps=4), batches)
    assert torch.equal(pickle.loads(pickle.dumps(model))(batches[0]["x"]), model(batches[0]["x"]))


@pytest.mark.parametrize("tied", [True, False])
def test_another_vocabulary_is_refused_where_the_output_layer_spikes(tied):
    model, batch = made.converted(build={"tie_word_embeddings": tied}), FAMILIES["gpt2"].batch()
    with pytest.raises(ValueError, match=r"calibrated for 100 tokens: fas\.revert\(model\), resize_token_embeddings"):
        model.resize_token_embeddings(103)
    assert model.resize_token_embeddings(100) is model.resize_token_embeddings()
    dense = fas.revert(model)
    dense.resize_token_embeddings(103, mean_resizing=False)
    assert logits(fas.convert(dense, calibration=[batch]), batch).shape[-1] == 103


def test_another_vocabulary_where_the_output_layer_is_dense():
    model, batch = made.converted(exclude=("lm_head",)), FAMILIES["gpt2"].batch()
    before = logits(model, batch)
    model.resize_token_embeddings(103, mean_resizing=False)
    assert torch.equal(logits(model, batch)[..., :100], before)

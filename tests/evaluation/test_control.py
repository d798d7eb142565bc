"""The training beside a comparison: which stage a method gets, and its control."""

import pytest
import tiny_cnns
import torch

import fas
from fas.data.for_model import Sample
from fas.evaluation import control
from fas.loading import Loaded


@pytest.mark.parametrize(("method", "stage"), [(fas.FAS, "train_quantised"), (fas.RateNorm, "train_rates")])
def test_rates_are_trained_as_rates_and_all_else_as_a_quantised_network(monkeypatch, method, stage):
    batch = {"x": tiny_cnns.images(4), "labels": torch.arange(4)}
    monkeypatch.setattr(control.Training, "_labelled", lambda self: [batch])
    dense = tiny_cnns.build("vgg")
    recipe = method(timesteps=2)
    model = fas.convert(tiny_cnns.build("vgg"), recipe, probe={"x": batch["x"][:1]}, calibration=[{"x": batch["x"]}])
    training = control.Training(Loaded.of(dense), "images", 1, Sample())
    seconds = training.run(Loaded.of(model), recipe, [{"x": batch["x"]}])
    assert stage in [record.stage for record in model.records] and seconds > 0
    assert training.control is not None and training.control.seconds > 0


@pytest.mark.parametrize(("window", "tokens"), [(None, 3 * 5 * 512), (16, 3 * 5 * 16)])
def test_text_of_as_many_tokens_as_the_steps_read(monkeypatch, window, tokens):
    asked = []

    def rows(loaded, source, sample):
        asked.append((source, sample.tokens))
        raise InterruptedError

    monkeypatch.setattr(control, "training_rows", rows)
    training = control.Training(Loaded.of(tiny_cnns.build("vgg")), "text", 3, Sample(batch_size=5, window=window))
    with pytest.raises(InterruptedError):
        training._transformer(training.dense, False, None)
    assert asked == [("text", tokens)]


@pytest.mark.parametrize(("width", "shift"), [(16, 2), (32, 4), (224, 4)])
def test_small_images_are_shifted_less(monkeypatch, width, shift):
    ones = {"x": torch.ones(64, 3, width, width), "labels": torch.zeros(64, dtype=torch.int64)}
    monkeypatch.setattr(control, "photographs", lambda *arguments, **options: [ones])
    (batch,) = control.Training(Loaded.of(tiny_cnns.build("vgg")), "images", 1, Sample())._labelled()
    # A border of zeros as wide as the image was shifted.
    assert int((batch["x"][:, 0, width // 2] == 0).sum(-1).max()) == shift

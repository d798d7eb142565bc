"""Time in the batch: rows are time-major, and only tensors of the right size are touched."""

from types import SimpleNamespace

import pytest
import torch
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.clip.modeling_clip import CLIPOutput
from transformers.utils import ModelOutput

from fas.errors import FASError
from fas.layers.simulation import Simulation
from fas.runtime import fold

last, mean = (Simulation(operators=name).after_window for name in ("difference", "instant"))


def test_rows_are_time_major():
    x = torch.arange(6).view(2, 3)
    folded = fold.fold(x, 2, 4)
    assert folded.shape == (8, 3)
    assert torch.equal(folded.view(4, 2, 3), x.expand(4, 2, 3))


@pytest.mark.parametrize(
    "value", [torch.tensor(3.0), torch.ones(3, 2), torch.ones(0, 2), 7, "flag", None, True, {"a": torch.ones(2)}]
)
def test_other_values_stay(value):
    assert fold.fold(value, 2, 4) is value


def test_tuples_and_lists_are_entered():
    x = torch.ones(2, 1)
    folded = fold.fold((x, [x, 5], None), 2, 3)
    assert type(folded) is tuple and type(folded[1]) is list
    assert folded[0].shape == folded[1][0].shape == (6, 1)
    assert folded[1][1] == 5 and folded[2] is None


def test_inputs_of_a_forward():
    positions, ids = torch.arange(2), torch.ones(2, 5)
    shared = {"cache_position": positions, "logits_to_keep": positions, "labels": ids}
    named = fold.fold_inputs({"input_ids": ids, **shared}, 2, 3)
    assert named["input_ids"].shape == (6, 5) and named["labels"] is ids
    # One entry per position, whatever the number of rows.
    assert named["cache_position"] is positions and named["logits_to_keep"] is positions


def test_images_are_repeated_as_a_whole():
    # Five patches of three images in two texts; and a list with an entry per video.
    patches, grid = torch.arange(5).view(5, 1), torch.tensor([[1, 1, 2], [1, 1, 2], [1, 1, 1]])
    named = fold.fold_inputs({"pixel_values": patches, "image_grid_thw": grid, "second_per_grid_ts": [0.5]}, 2, 4)
    assert torch.equal(named["pixel_values"].view(4, 5, 1), patches.expand(4, 5, 1))
    assert torch.equal(named["image_grid_thw"].view(4, 3, 3), grid.expand(4, 3, 3))
    assert named["second_per_grid_ts"] == [0.5] * 4
    assert fold.fold_inputs({"pixel_values": None, "position_ids": None}, 2, 4)["pixel_values"] is None


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_positions_of_several_axes(rows):
    # Three axes, and as many rows or not.
    positions, plain = torch.arange(3 * rows * 5).view(3, rows, 5), torch.arange(rows * 5).view(rows, 5)
    named = fold.fold_inputs({"position_ids": positions}, rows, 4)
    assert torch.equal(named["position_ids"].view(3, 4, rows, 5), positions.unsqueeze(1).expand(3, 4, rows, 5))
    assert torch.equal(fold.fold_inputs({"position_ids": plain}, rows, 4)["position_ids"], plain.repeat(4, 1))


def test_remembered_positions():
    owner, deltas = SimpleNamespace(rope_deltas=torch.tensor([[1], [2]])), torch.tensor([[1], [2]])
    with fold.positions_folded(owner, 2, 3):
        assert torch.equal(owner.rope_deltas, deltas.repeat(3, 1))
        owner.rope_deltas = owner.rope_deltas + 1
    assert torch.equal(owner.rope_deltas, deltas + 1)
    owner.rope_deltas = None
    with fold.positions_folded(owner, 2, 3):
        owner.rope_deltas = deltas.repeat(3, 1)
    assert torch.equal(owner.rope_deltas, deltas)


def test_patches_for_every_beam():
    ids, grid = torch.ones(2, 7), torch.tensor([[1, 2, 2], [1, 1, 3]])
    patches = torch.arange(7).view(7, 1)
    found = fold.repeated_images({"input_ids": ids, "pixel_values": patches, "image_grid_thw": grid}, 2)
    assert list(found) == ["pixel_values"]
    assert found["pixel_values"].flatten().tolist() == [*range(4), *range(4), 4, 5, 6, 4, 5, 6]
    # Rows that are whole images are repeated by transformers.
    assert fold.repeated_images({"input_ids": ids, "pixel_values": torch.ones(2, 3, 4, 4)}, 2) == {}
    with pytest.raises(FASError, match=r"one image for every text; got 3 \(pixel_values\) for 2 texts"):
        fold.repeated_images({"input_ids": ids, "pixel_values": torch.ones(3, 3, 4, 4)}, 2)


def test_comparisons_are_those_of_equal_steps():
    # Three steps, two images, four texts: the entry of step s, image i, step t, text j is known by its digits.
    digits = [1000 * s + 100 * i + 10 * t + j for s in range(3) for i in range(2) for t in range(3) for j in range(4)]
    logits = torch.tensor(digits, dtype=torch.float64).view(6, 12)
    output = CLIPOutput(
        logits_per_image=logits,
        logits_per_text=logits.T,
        image_embeds=torch.arange(6.0),
        text_embeds=torch.arange(12.0),
    )
    reduced = fold.reduce_steps(output, 4, 3, last)
    assert type(reduced) is CLIPOutput
    assert reduced.logits_per_image.tolist() == [[2020.0 + 100 * i + j for j in range(4)] for i in range(2)]
    assert torch.equal(reduced.logits_per_text, reduced.logits_per_image.T)
    assert reduced.image_embeds.tolist() == [4, 5] and reduced.text_embeds.tolist() == [8, 9, 10, 11]
    every = fold.reduce_steps(output, 4, 3, lambda x: x)
    assert every.logits_per_image.shape == (3, 2, 4) and every.logits_per_text.shape == (3, 4, 2)
    assert every.logits_per_image[1, 1, 3] == every.logits_per_text[1, 3, 1] == 1113


def test_one_row_and_one_step():
    x = torch.randn(1, 3)
    assert torch.equal(fold.fold(x, 1, 1), x)
    assert torch.equal(fold.reduce_steps(x, 1, 1, last), x)


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        (last, lambda x: x[-1]),
        (mean, lambda x: sum(x) / len(x)),
        (fold.running_mean, lambda x: torch.stack([x[: t + 1].mean(0) for t in range(len(x))])),
    ],
)
def test_reductions(reduction, expected):
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    reduced = fold.reduce_steps(x.flatten(0, 1), 2, 4, reduction)
    # Float64: sums of four in another order.
    torch.testing.assert_close(reduced, expected(x), rtol=1e-12, atol=1e-12)


def test_reducing_undoes_folding():
    x = torch.randn(3, 2, 5)
    for reduction in (last, mean):
        torch.testing.assert_close(fold.reduce_steps(fold.fold(x, 3, 4), 3, 4, reduction), x)


def test_outputs_are_entered():
    hidden = torch.randn(6, 2)
    cache = object()
    output = CausalLMOutput(logits=hidden, hidden_states=(hidden, torch.ones(5)), attentions=None)
    reduced = fold.reduce_steps(output, 2, 3, last)
    assert type(reduced) is CausalLMOutput
    assert torch.equal(reduced.logits, hidden[4:]) and torch.equal(reduced.hidden_states[0], hidden[4:])
    assert torch.equal(reduced.hidden_states[1], torch.ones(5)) and reduced.attentions is None
    assert fold.reduce_steps((hidden, cache), 2, 3, last)[1] is cache


def test_other_leading_sizes_stay():
    for x in (torch.ones(5, 2), torch.ones(2, 6), torch.tensor(1.0)):
        assert fold.reduce_steps(x, 2, 3, last) is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reductions_keep_the_dtype(dtype):
    for reduction in (last, mean, fold.running_mean):
        assert reduction(torch.ones(3, 2, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(
    "name", ["input_ids", "inputs_embeds", "pixel_values", "decoder_input_ids", "decoder_inputs_embeds"]
)
def test_the_batch_size_is_seen(name):
    assert fold.batch_rows({"attention_mask": torch.ones(9), name: torch.ones(3, 2)}) == 3


def test_no_batch_size():
    with pytest.raises(ValueError, match=r"cannot tell its size: pass input_ids.*got \['input_ids', 'mask'\]"):
        fold.batch_rows({"mask": torch.ones(2), "input_ids": None})


def test_outputs_without_tensors():
    assert fold.reduce_steps(ModelOutput(a=1), 2, 3, last) == ModelOutput(a=1)

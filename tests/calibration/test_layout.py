"""How blocks hand on, and passes that leave them out."""

import functools
from collections import Counter

import made
import pytest
import torch
from tiny_models import FAMILIES, hooked
from tiny_vision_language import VISION_LANGUAGE

import fas
from fas.calibration.layout import left_out, observe, siblings
from fas.calibration.walk import walk
from fas.surgery.probe import probe_inputs, without_cache

converted = functools.partial(made.converted, seeds=())


def layout_of(model, batch):
    def run():
        with torch.no_grad(), model.simulation.using(network="ann"):
            model(**batch, **without_cache(model))

    return observe(model, run)


def test_blocks_that_hand_on_directly():
    model = converted("opt")
    layout = layout_of(model, FAMILIES["opt"].batch())
    blocks = [f"model.decoder.layers.{i}" for i in range(2)]
    assert siblings(model, blocks[1]) == blocks
    assert layout.chain(blocks, blocks[1]) == layout.chain(blocks, blocks[0]) == blocks
    assert layout.handed == {blocks[1]} and layout.repeated == frozenset()
    assert layout.can_leave_out(blocks) and not layout.can_leave_out(["model.decoder"])


def test_a_block_that_reads_something_else():
    model = converted("llama")
    second = model.model.layers[1]
    with torch.no_grad():
        handle = second.register_forward_pre_hook(lambda _, arguments: (arguments[0] * 2, *arguments[1:]))
        layout = layout_of(model, FAMILIES["llama"].batch())
        handle.remove()
    # The hook of the test runs before that of the observer: the block reads a product of its own.
    assert layout.handed == frozenset()
    blocks = siblings(model, "model.layers.0")
    assert layout.chain(blocks, blocks[0]) == blocks[:1] and layout.chain(blocks, blocks[1]) == blocks[1:]


def test_blocks_whose_hidden_state_others_read_are_run():
    # The projector reads what the last block but one of the tower returns.
    family = VISION_LANGUAGE["llava"]
    model = fas.convert(family.build(), fas.FAS(timesteps=4))
    layout = layout_of(model, family.batch())
    tower, language = (siblings(model, f"model.{part}.layers.0") for part in ("vision_tower.encoder", "language_model"))
    assert layout.chain(tower, tower[0]) == tower and not layout.can_leave_out(tower)
    assert layout.can_leave_out(language)
    model.config.vision_feature_layer = -1
    assert layout_of(model, family.batch()).can_leave_out(tower)


def test_blocks_that_exchange_more_are_run():
    # The first block of T5 hands its position bias to all others.
    model = converted("t5")
    layout = layout_of(model, FAMILIES["t5"].batch())
    assert not layout.can_leave_out(siblings(model, "encoder.block.0"))
    assert "encoder.block.1" in layout.handed and "encoder.block.1" not in layout.forms


def test_layers_that_run_twice():
    model = converted("albert", coverage="mlp")
    assert layout_of(model, FAMILIES["albert"].batch()).repeated == {model.sites[0].path}


def test_a_model_on_the_meta_device_shows_the_same():
    model = converted("gpt2")
    real = layout_of(model, FAMILIES["gpt2"].batch())
    model.to("meta")
    with torch.no_grad(), model.simulation.using(network="ann"):
        assert observe(model, lambda: model(**probe_inputs(model))) == real


@pytest.mark.parametrize("name", ["gpt2", "opt", "bloom", "bert_mlm", "vit"])
def test_a_pass_without_blocks_gives_what_follows_the_last_one(name):
    family = FAMILIES[name]
    model, batch = converted(name), family.batch()
    extra = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    layout = layout_of(model, batch)
    blocks = siblings(model, next(iter(sorted(layout.forms))))
    final, called = {}, Counter()

    def run():
        with torch.no_grad(), model.simulation.using(network="ann"):
            return model(**batch, **extra).logits

    last = model.get_submodule(blocks[-1])
    handle = last.register_forward_hook(
        lambda _, arguments, output: final.update(x=output if torch.is_tensor(output) else output[0])
    )
    expected = run()
    handle.remove()
    layer = next(m for m in model.get_submodule(blocks[0]).modules() if hasattr(m, "in_features"))
    layer.register_forward_pre_hook(lambda *_: called.update(["inside"]))
    with left_out(model, layout, blocks, final["x"]):
        assert torch.equal(run(), expected)
    assert called == Counter() and not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(run(), expected) and called["inside"] == 1


def test_blocks_left_out_hand_on_what_they_receive():
    model = converted("gpt2")
    layout = layout_of(model, FAMILIES["gpt2"].batch())
    blocks = siblings(model, "transformer.h.0")

    def run():
        with torch.no_grad(), model.simulation.using(network="ann"):
            model(**FAMILIES["gpt2"].batch())

    with left_out(model, layout, blocks):
        (first,) = hooked(model, model.get_submodule(blocks[0]), run)
        (behind,) = hooked(model, model.transformer.ln_f, run)
    assert torch.equal(first, behind)


def test_the_walk_never_runs_the_model_to_its_end():
    model, batches, calls = converted("gpt2"), [FAMILIES["gpt2"].batch(seed=i) for i in range(3)], Counter()
    for i, block in enumerate(model.transformer.h):
        block.register_forward_pre_hook(lambda *_, i=i: calls.update([i]))

    def visit(seen):
        seen.population.set(seen.snn.abs().amax(0).clamp_min(1e-3), torch.zeros(()), torch.tensor(0.5))

    walk(model, model.sites, batches, visit)
    # One pass to see how blocks hand on; then for every batch and network one call that is left out, in the spiking
    # network one for each of four sites and one to go on, in the dense one a single call that shows all sites and goes
    # on. The head is reached from the last block by calls that are left out.
    assert calls == {i: 1 + 3 * ((1 + 1) + (1 + 4 + 1) + 2) for i in range(2)}

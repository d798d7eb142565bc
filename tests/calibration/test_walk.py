"""The walk sees what a full pass of the partly converted model shows at every site."""

import functools

import made
import pytest
import torch
from tiny_models import FAMILIES, hooked

import fas
from fas.calibration.walk import dense_inputs, walk
from fas.errors import CalibrationError
from fas.surgery.probe import without_cache
from fas.surgery.replace import populations

NETWORKS = ("ann", "snn")


# BLOOM computes attention by itself.
FULL = [
    (name, "full") for name in ("gpt2", "opt", "llama", "gemma3", "bert_mlm", "t5", "t5_gated", "bart", "albert", "vit")
]


converted = functools.partial(made.converted, seeds=())


def by_maximum(seen):
    """Thresholds from the spiking input, so that they depend on the predecessors."""
    top = seen.snn.abs().amax(0).clamp_min(1e-3)
    seen.population.set(top, torch.zeros(()), torch.tensor(0.5))


def visits(model, batches, **options):
    seen = []

    def visit(one):
        by_maximum(one)
        seen.append(one)

    walk(model, model.sites, batches, visit, **options)
    return seen


def mask_of(batch, path):
    """The mask of a site by the names that T5 and BART give their layers."""
    crossing = ("EncDecAttention.", "encoder_attn.")
    cross = any(part + end in path for part in crossing for end in ("k", "operands.key", "operands.value"))
    decoder = "decoder_input_ids" in batch and "encoder." not in path and not cross
    return batch.get("decoder_attention_mask" if decoder else "attention_mask")


def rows_in_full_passes(model, site, batches, network):
    """All inputs of a site, from whole forward passes and nothing of the walk."""
    population, rows = populations(model)[site.path], []
    # A cache lays keys out in another order, and products of attention round otherwise.
    for batch in batches:
        with torch.no_grad(), model.simulation.using(network=network):
            inputs = hooked(model, population, lambda batch=batch: model(**batch, **without_cache(model)))
        # One call for each linear layer of the site, and again where layers are shared.
        for x in inputs[:: max(1, len(site.layers))]:
            mask = mask_of(batch, site.path)
            if site.role == "attention_weight":
                # No padding among the queries, no key that a query must not see.
                kept = x if mask is None else x[mask.bool()]
                rows.append(kept.flatten(0, -2)[kept.flatten(0, -2).any(-1)])
                continue
            x = x.flatten(0, -2)
            fits = mask is not None and mask.numel() == len(x)
            rows.append(x[mask.flatten().bool()] if fits else x)
    return torch.cat(rows)


def padded_batches(name):
    family = FAMILIES[name]
    batches = [family.batch(padded=True), family.batch(rows=2, length=11, seed=5)]
    if family.seq2seq:
        # As long as the encoder's input, with other padding: only its place tells whose mask it is.
        batches[0]["decoder_input_ids"] = batches[0]["input_ids"].flip(0)
        batches[0]["decoder_attention_mask"] = batches[0]["attention_mask"].flip(0)
    return batches


@pytest.mark.parametrize(
    ("name", "coverage"),
    # Full coverage holds the sites of the others.
    [*FULL, ("bloom", "linear"), *((name, part) for name in ("gpt2", "t5", "vit") for part in ("mlp", "linear"))],
)
def test_inputs_are_those_of_full_passes(name, coverage):
    model, batches = converted(name, coverage=coverage), padded_batches(name)
    seen = visits(model, batches)
    assert [one.site for one in seen] == model.sites
    # The walk once more, without replay: sites start to spike one by one, in this order.
    neurons = populations(model)
    for population in neurons.values():
        population.active = False
    for one in seen:
        for network in NETWORKS:
            expected = rows_in_full_passes(model, one.site, batches, network)
            got = one.ann if network == "ann" else one.snn
            assert got.dtype == torch.float32 and torch.equal(got, expected), (one.site.path, network)
        neurons[one.site.path].active = True
    assert torch.equal(seen[0].ann, seen[0].snn)
    assert len(seen) == 1 or not torch.equal(seen[-1].ann, seen[-1].snn)


@pytest.mark.parametrize("name", ["gpt2", "t5", "bart", "albert"])
def test_inputs_in_the_dense_network_are_those_of_full_passes(name):
    model, batches = converted(name, coverage="full"), padded_batches(name)
    found = dense_inputs(model, batches, max_rows=10_000)
    assert list(found) == [site.path for site in model.sites]
    for site in model.sites:
        assert torch.equal(found[site.path], rows_in_full_passes(model, site, batches, "ann")), site.path
    assert max(map(len, dense_inputs(model, batches, max_rows=10).values())) == 10


@pytest.mark.parametrize(
    ("name", "coverage"), [*((name, "full") for name in ("gpt2", "t5", "bart", "albert")), ("bloom", "linear")]
)
def test_sites_are_visited_in_the_order_of_execution(name, coverage):
    model, order = converted(name, coverage=coverage), []
    seen = visits(model, [FAMILIES[name].batch()])
    handles = [
        population.register_forward_pre_hook(lambda module, _: order.append(module.path))
        for population in populations(model).values()
    ]
    with torch.no_grad():
        model(**FAMILIES[name].batch())
    for handle in handles:
        handle.remove()
    assert [one.site.path for one in seen] == list(dict.fromkeys(order))


def test_a_layer_that_runs_twice_shows_both_inputs():
    model = converted("albert", coverage="mlp")
    (one,) = visits(model, [FAMILIES["albert"].batch(rows=3, length=9)])
    assert len(one.ann) == len(one.snn) == 2 * 27


@pytest.mark.parametrize("name", ["gpt2", "opt"])  # OPT hands its MLP all positions of all rows in one list
def test_padding_is_left_out(name):
    batch = FAMILIES[name].batch(padded=True)
    for one in visits(converted(name), [batch]):
        assert len(one.ann) == len(one.snn) == int(batch["attention_mask"].sum()) == 23


def test_a_decoder_without_a_mask_keeps_all_its_rows():
    family = FAMILIES["t5"]
    batch = family.batch(padded=True)
    batch["decoder_input_ids"] = batch["input_ids"]
    rows = {one.site.path: len(one.snn) for one in visits(converted("t5", coverage="mlp"), [batch])}
    assert {rows[path] for path in rows if path.startswith("encoder")} == {23}
    assert {rows[path] for path in rows if path.startswith("decoder")} == {27}


def test_rows_are_limited_and_spread_over_the_batches():
    family = FAMILIES["llama"]
    batches = [family.batch(seed=seed) for seed in (1, 2, 3)]
    full = visits(converted("llama", coverage="mlp"), batches)
    few = visits(converted("llama", coverage="mlp"), batches, max_rows=30)
    assert len(full[0].ann) == 81 and len(few[0].ann) == 30
    parts = full[0].ann.split(27)
    for part, chosen in zip(parts, few[0].ann.split(10), strict=True):
        places = [int((part == row).all(-1).nonzero()[0]) for row in chosen]
        assert places[0] == 0 and places[-1] == 26 and places == sorted(set(places))


def test_the_model_is_left_as_it_was():
    model, told = converted("gpt2", coverage="mlp", neuron="signed_if"), []
    model.schedule, model.execution = "online", "stepped"
    model.train()
    walk(model, model.sites, [FAMILIES["gpt2"].batch()], by_maximum, progress=lambda *told_: told.append(told_))
    assert model.training and (model.schedule, model.execution) == ("online", "stepped")
    assert all(population.active for population in populations(model).values())
    assert told == [(site.path, i + 1, 2) for i, site in enumerate(model.sites)]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_labels_are_not_run():
    batch = FAMILIES["gpt2"].batch()
    # A token that the vocabulary does not have: the loss would fail.
    visits(converted("gpt2", coverage="mlp"), [{**batch, "labels": torch.full_like(batch["input_ids"], 10**6)}])


def test_no_batches():
    model = converted("gpt2", coverage="mlp")
    with pytest.raises(CalibrationError, match="at least one batch is needed"):
        walk(model, model.sites, [], by_maximum)


def test_batches_of_padding_only():
    model, batch = converted("bert_mlm", coverage="mlp"), FAMILIES["bert_mlm"].batch()
    batch["attention_mask"] = torch.zeros_like(batch["attention_mask"])
    with pytest.raises(CalibrationError, match=r"no activations reach bert\.encoder\.layer\.0\.output\.dense"):
        walk(model, model.sites, [batch], by_maximum)
    assert all(population.active for population in populations(model).values())


def test_a_batch_of_no_rows():
    model = converted("gpt2", coverage="mlp")
    batch = {"input_ids": torch.zeros(0, 5, dtype=torch.long)}
    with pytest.raises(CalibrationError, match=r"calibration batch 1 of 2 is empty"):
        walk(model, model.sites, [FAMILIES["gpt2"].batch(), batch], by_maximum)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("transformer.h.0.attn.c_proj", r"input of transformer\.h\.0\.mlp\.c_fc \(dense network\) has NaN"),
        ("transformer.h.1.mlp.c_proj", r"input of lm_head \(dense network\) has NaN"),
    ],
)
def test_activations_that_overflow_name_the_layer_that_receives_them(layer, message):
    model = converted("gpt2")
    with torch.no_grad():
        # Finite, or it would be refused as a parameter; sums of its products are not.
        model.get_submodule(layer).weight.fill_(3e38)
    with pytest.raises(CalibrationError, match=message):
        fas.calibrate(model, [FAMILIES["gpt2"].batch()])
    assert all(population.active for population in populations(model).values())

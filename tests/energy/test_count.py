"""Counts of whole models against loops over recorded spikes, closed forms and PyTorch's own flop counter."""

from __future__ import annotations

import math

import pytest
import torch
from made import Trains, converted
from tiny_models import FAMILIES, linear_layers
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import fas
from fas import registry
from fas.energy.count import count_operations
from fas.energy.operations import Operations
from fas.layers.gated import Gated
from fas.types import OPERANDS

STEPS = 4
NAMES = ("exp", "reciprocal", "square_root", "square", "gelu", "gelu_tanh", "silu", "tanh", "digits")


def counted(model, batch, **settings):
    with torch.no_grad(), model.simulation.using(**settings), count_operations(model) as counts:
        model(**batch)
    return counts


def trains_of(model, run, **settings):
    trains = Trains()
    with torch.no_grad(), model.simulation.using(observers=[trains], **settings):
        run()
    return trains.calls


def fan_outs(family):
    """Outputs of every linear layer of the dense model, by name."""
    dense = family.build()
    shapes = {}
    for path in linear_layers(dense):
        layer = dense.get_submodule(path)
        shapes[path] = layer.weight.shape[0 if isinstance(layer, torch.nn.Linear) else 1]
    return shapes


@pytest.mark.parametrize("name", ["opt", "llama", "t5"])
@pytest.mark.parametrize(
    ("neuron", "schedule", "kind"),
    [
        ("signed_if", "layerwise", "additions"),
        ("signed_if", "online", "additions"),
        ("clipped_count", "layerwise", "graded_multiply_adds"),
        ("clipped_count", "online", "graded_multiply_adds"),
        ("phase", "layerwise", "shift_additions"),
    ],
)
def test_sites_against_a_loop_over_recorded_spikes(name, neuron, schedule, kind):
    family, batch = FAMILIES[name], FAMILIES[name].batch()
    model, outputs = converted(name, neuron=neuron, schedule=schedule), fan_outs(family)
    counts = counted(model, batch).by_place()
    trains = trains_of(model, lambda: model(**batch), execution="stepped")
    for site in model.sites:
        fan_out = sum(outputs[path] for path in site.layers)
        found, spikes, events, updates, once, words = counts[site.path], 0, 0, 0, 0, 0
        for call in trains[site.path]:
            spikes += sum(int(step.sum()) for step in call)
            events += sum(int((step != 0).sum()) for step in call)
            updates += sum(step.numel() for step in call)
            silent = call.sum(0) == 0
            once += int((~silent).sum())
            words += fan_out * sum(not bool(channel.all()) for channel in silent.flatten(0, -2).T)
        assert len(trains[site.path][0]) == STEPS
        assert (found.spikes, found.events, found.membrane_updates) == (spikes, events, updates)
        assert getattr(found, kind) == found.synaptic == found.weight_words == events * fan_out
        assert found.weight_words_time == found.nonzero_multiply_adds == once * fan_out
        assert found.weight_words_pass == words
        assert found.windows * STEPS == updates and found.dense_multiply_adds == found.windows * fan_out
        address = math.ceil(math.log2(site.channels))
        assert found.event_bits >= events * address
        if kind == "additions" and site.signed:
            assert found.event_bits == events * (address + 1)


def test_what_adapting_thresholds_take_is_counted():
    family, batch = FAMILIES["llama"], FAMILIES["llama"].batch()
    adapting, fixed = (converted("llama", neuron=neuron) for neuron in ("adaptive_digit", "ternary_phase"))
    outputs, tokens = fan_outs(family), batch["input_ids"].numel()
    ours, theirs = (counted(model, batch).by_place() for model in (adapting, fixed))
    for site in adapting.sites:
        sums = sum(outputs[path] for path in site.layers)
        found, plain = ours[site.path], theirs[site.path]
        # Levels; their mean, their maximum, and the exponent of every sum.
        assert found.multiplications - plain.multiplications == tokens * site.channels
        assert found.float_additions - plain.float_additions == tokens * (2 * site.channels + sums)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("network", ["snn", "ann"])
def test_arithmetic_of_gpt2_by_hand(attention, network):
    batch = FAMILIES["gpt2"].batch()
    model = converted(build={"attn_implementation": attention}, neuron="ternary_phase")
    found = counted(model, batch, network=network).total()
    tokens, pairs = 27, 3 * sum(range(1, 10)) * 2 * 2
    norms = 5 * tokens
    # Two heads of 16, two products; normalisation: two per value.
    assert found.multiply_adds == pairs * 32 + norms * 32 * 2
    assert found.exponentials == found.multiplications == pairs
    assert (found.roots, found.divisions) == (norms, tokens * 2 * 2)
    # GELU of 48 in two blocks; positions, and two residual connections in each.
    assert (found.activations, found.float_additions) == (tokens * 48 * 2, tokens * 32 * 5)
    weights = 2 * (32 * 96 + 32 * 32 + 2 * 32 * 48) + 32 * 100
    assert found.dense_multiply_adds == tokens * weights
    if network == "ann":
        assert found.weight_words == found.weight_words_time == tokens * weights + pairs * 32
        assert found.spikes == found.events == found.membrane_updates == 0


@pytest.mark.parametrize("name", ["bert_mlm", "vit", "llama", "bart"])
def test_products_against_the_flop_counter_of_pytorch(name):
    # The flop counter knows products, and no masks.
    family, build = FAMILIES[name], {"attn_implementation": "eager"}
    batch = family.batch()
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        family.build(**build)(**batch)
    counts = counted(converted(name, build=build), batch, network="ann")
    found = counts.total()
    norms = sum(place.multiply_adds for place in counts.by_place().values() if place.roots)
    masked = 0
    if name in ("llama", "bart"):
        length, heads, width = (6, 2, 16) if name == "bart" else (9, 4, 8)
        masked = 3 * 2 * heads * (length * (length - 1) // 2) * 2 * width
    products = found.multiply_adds - norms + found.dense_multiply_adds + masked
    assert 2 * products == flops.get_total_flops()


@pytest.mark.parametrize("name", ["gpt2", "bert_mlm", "mistral"])
def test_masked_pairs_are_left_out_alike_by_every_attention_function(name):
    batch = FAMILIES[name].batch(padded=True)
    fused = counted(converted(name, build={"attn_implementation": "sdpa"}), batch, network="ann").total()
    eager = counted(converted(name, build={"attn_implementation": "eager"}), batch, network="ann").total()
    assert fused.multiply_adds == eager.multiply_adds and fused.exponentials == eager.exponentials
    unpadded = counted(converted(name), FAMILIES[name].batch(), network="ann").total()
    assert fused.exponentials < unpadded.exponentials


def test_a_sliding_window_sees_no_further():
    found = counted(converted("mistral"), FAMILIES["mistral"].batch(), network="ann").total()
    assert found.exponentials == 3 * 2 * 4 * sum(min(i + 1, 4) for i in range(9))


def test_online_repeats_what_spikes_do_not_drive():
    batch = FAMILIES["llama"].batch()
    model = converted("llama", coverage="mlp", neuron="signed_if")
    once, often = counted(model, batch), counted(model, batch, schedule="online")
    # The output layer is linear and computes the answer alone.
    assert once.places.pop(("prefill", "lm_head")) == often.places.pop(("prefill", "lm_head"))
    once, often = once.total(), often.total()
    for name in ("multiply_adds", "exponentials", "activations", "roots", "divisions"):
        assert getattr(often, name) == STEPS * getattr(once, name) > 0
    assert often.windows == once.windows and often.membrane_updates == once.membrane_updates


def visible(length, causal=True):
    return [[j for j in range(length) if j <= i or not causal] for i in range(length)]


@pytest.mark.parametrize("neuron", ["signed_if", "clipped_count"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom"])
def test_attention_factors_against_a_loop(name, neuron):
    batch, heads = FAMILIES[name].batch(), {"gpt2": 2, "llama": 4, "bloom": 2}[name]
    model = converted(name, coverage="full", neuron=neuron)
    counts = counted(model, batch).by_place()
    trains = trains_of(model, lambda: model(**batch), execution="stepped")
    sees, width = visible(9), 32 // heads
    for site in model.sites:
        if site.role not in OPERANDS:
            continue
        (train,) = trains[site.path]
        found = counts[site.path]
        additions = once = 0
        if site.role == "query":
            for place in (train != 0).nonzero().tolist():
                additions += len(sees[place[2]])
            for place in (train != 0).any(0).nonzero().tolist():
                once += len(sees[place[1]])
            assert found.dense_multiply_adds == 3 * heads * 45 * width
        elif site.role == "attention_weight":
            for _, _, query, key, _ in (train != 0).nonzero().tolist():
                assert key in sees[query]
                additions += width
            once = int((train != 0).any(0).sum()) * width
            assert found.membrane_updates == 3 * heads * 45 * STEPS
        else:
            additions = int((train != 0).sum())
            assert found.dense_multiply_adds == found.weight_words == 0
        assert found.synaptic == additions and found.nonzero_multiply_adds == once
    linear, full = counted(converted(name, neuron=neuron), batch).total(), counted(model, batch).total()
    # What left the dense arithmetic stands at the sites now.
    moved = full.dense_multiply_adds - linear.dense_multiply_adds
    # Offsets of queries, times keys, are new.
    offsets = sum(counts[site.path].multiply_adds for site in model.sites)
    assert moved == 3 * 2 * heads * 45 * 2 * width == linear.multiply_adds - (full.multiply_adds - offsets)


def test_masked_pairs_have_no_neurons_wherever_spikes_are_counted():
    batch = FAMILIES["gpt2"].batch()
    for schedule in ("layerwise", "online"):
        model = converted(coverage="full", neuron="signed_if", schedule=schedule)
        with torch.no_grad(), fas.record(model) as spikes:
            model(**batch)
        counts = counted(model, batch).by_place()
        for site in model.sites:
            seen, found = spikes.sites[site.path], counts[site.path]
            assert (seen.spikes, seen.windows) == (found.spikes, found.windows), (schedule, site.path)
            assert found.membrane_updates == STEPS * found.windows
            if site.role == "attention_weight":
                # Nine queries of which each sees the keys up to its own.
                assert seen.windows == 3 * 2 * 45
        total = Operations()
        for found in counts.values():
            total += found
        assert spikes.spikes_per_neuron == total.spikes / total.windows


def ones_of(function, x):
    """Spikes of a gated population for one input, by the definition: ones among the digits of a place in a segment."""
    if function.reduction == "exponent":
        x = min(80.0, max(0.0, -x * math.log2(math.e)))
        x -= math.floor(x)
    elif function.reduction != "none":
        if x == 0:
            return 0
        x = abs(x)
        base = 4.0 if function.reduction == "double_octave" else 2.0
        while x >= base:
            x /= base
        while x < 1:
            x *= base
    along = (x - function.low) * len(function.slopes) / (function.high - function.low)
    segment = min(max(math.floor(along), 0), len(function.slopes) - 1)
    digits = math.floor((along - segment) * 2**function.digits + 0.5)
    return bin(min(max(digits, 0), 2**function.digits)).count("1")


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_gated_populations_send_spikes_that_are_counted(name, monkeypatch):
    family, batch = FAMILIES[name], {"input_ids": FAMILIES[name].batch()["input_ids"][:1, :5]}
    method = registry.load("methods", "las")(timesteps=STEPS)
    # Digits of float64 do not depend on how a place is computed.
    model = fas.convert(family.build(), method, calibration=[family.batch(seed=3)]).double()
    calls = []
    evaluate = Gated.__call__
    monkeypatch.setattr(Gated, "__call__", lambda self, x: (calls.append((self, x.clone())), evaluate(self, x))[1])
    counts = counted(model, batch)
    heads, layers = {"gpt2": 2, "llama": 4}[name], 2
    width, spikes, evaluations, additions, previous = 32 // heads, 0, 0, 0, ""
    for function, x in calls:
        # What a mask hides lies far below all else.
        values = [value for value in x.flatten().tolist() if value > -1e30]
        sent = sum(ones_of(function, value) for value in values)
        spikes, evaluations = spikes + sent, evaluations + len(values)
        # The digits of a reciprocal drive a product with a whole row: of normalisation, or of a head's values.
        rows = {5: 32, heads * 5: width}.get(x.numel(), 1) if function.name == "digits" else 1
        additions += sent * (rows if previous == "reciprocal" else 1)
        previous = function.name
    found = [place for path, place in counts.by_place().items() if path.rpartition(".")[2] in NAMES]
    assert {"exp", "square", "square_root", "reciprocal", "digits"} < {f.name for f, _ in calls}
    assert sum(place.spikes for place in found) == sum(place.events for place in found) == spikes > 0
    assert sum(place.windows for place in found) == evaluations
    assert sum(place.shift_additions for place in found) == additions
    assert sum(place.membrane_updates for place in found) == sum(
        f.digits * sum(v > -1e30 for v in x.flatten().tolist()) for f, x in calls
    )
    total = counts.total()
    assert total.exponentials == total.activations == total.roots == total.divisions == 0
    # Gain and bias of normalisation; factors that rotate.
    assert total.multiply_adds == (2 * layers + 1) * 5 * 32
    with torch.no_grad(), fas.record(model) as recorded:
        model(**batch)
    named = {path: site for path, site in recorded.sites.items() if path.startswith("gated.")}
    assert (sum(s.spikes for s in named.values()), sum(s.windows for s in named.values())) == (spikes, evaluations)
    # The dense network evaluates the functions.
    dense = counted(model, batch, network="ann").total()
    assert dense.exponentials == layers * heads * 15 and dense.roots == (2 * layers + 1) * 5


def generated(model, prompt, new, **options):
    with torch.no_grad(), count_operations(model) as counts:
        mask = torch.ones_like(prompt)
        model.generate(
            prompt,
            attention_mask=mask,
            max_new_tokens=new,
            min_new_tokens=new,
            pad_token_id=0,
            do_sample=False,
            **options,
        )
    return counts


@pytest.mark.parametrize("schedule", ["layerwise", "online"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_prefill_and_decoding_stand_apart(name, schedule):
    prompt = FAMILIES[name].batch()["input_ids"]
    model = converted(name, schedule=schedule, neuron="signed_if")
    counts = generated(model, prompt, 4)
    heads = {"gpt2": 2, "llama": 4}[name]
    # The last of the new tokens is not read again.
    assert counts.tokens == {"prefill": 27, "decode": 3 * 3} and counts.phases == ["prefill", "decode"]
    times = STEPS if schedule == "online" else 1
    assert counts.total("prefill").exponentials == times * 3 * 2 * heads * 45
    assert counts.total("decode").exponentials == times * 3 * 2 * heads * (10 + 11 + 12)
    # One position of the head per row in the prompt, and one per new token.
    head = {phase: found for (phase, path), found in counts.places.items() if path == "lm_head"}
    assert (head["prefill"].windows, head["decode"].windows) == (3 * 32, 3 * 3 * 32)


def test_decoding_without_a_cache_is_prefill():
    counts = generated(converted(), FAMILIES["gpt2"].batch()["input_ids"], 3, use_cache=False)
    assert counts.tokens == {"prefill": 3 * (9 + 10 + 11)}


def test_keys_in_the_cache_are_not_sent_again():
    prompt = FAMILIES["gpt2"].batch()["input_ids"]
    model = converted(coverage="full")
    counts = generated(model, prompt, 4)
    for role, windows in (("key", 3 * 3 * 32), ("value", 3 * 3 * 32), ("query", 3 * 3 * 32)):
        assert counts.places["decode", f"transformer.h.1.attn.operands.{role}"].windows == windows
    weights = counts.places["decode", "transformer.h.1.attn.operands.attention_weight"]
    assert weights.windows == 3 * 2 * (10 + 11 + 12)


def test_the_keys_of_an_encoder_are_sent_once():
    family = FAMILIES["bart"]
    prompt = family.batch()["input_ids"]
    model = converted("bart", coverage="full")
    counts = generated(model, prompt, 4)
    path = "model.decoder.layers.0.encoder_attn.operands.key"
    assert counts.places["prefill", path].windows == 27 * 32
    assert counts.places["decode", path].windows == 0


def test_stopping_early_counts_the_steps_that_ran():
    prompt = FAMILIES["gpt2"].batch(rows=1)["input_ids"]
    # Without the head: the step-by-step loop gives logits of the whole prompt, generate those of its end.
    model = converted(schedule="online", coverage="mlp", neuron="signed_if")
    whole = generated(model, prompt, 3)
    anytime = fas.Anytime(margin=math.inf)
    stepwise = generated(model, prompt, 3, custom_generate=anytime)
    assert anytime.mean_steps == STEPS and stepwise.tokens == whole.tokens
    for phase in ("prefill", "decode"):
        one, other = whole.total(phase), stepwise.total(phase)
        assert one.events
        for name in (
            "events",
            "windows",
            "membrane_updates",
            "additions",
            "dense_multiply_adds",
            "nonzero_multiply_adds",
        ):
            assert getattr(one, name) == getattr(other, name), name
    anytime = fas.Anytime(margin=0.0)
    first = generated(model, prompt, 3, custom_generate=anytime).total()
    assert anytime.mean_steps == 1 and first.membrane_updates * STEPS == whole.total().membrane_updates


@pytest.mark.parametrize("name", ["opt", "gpt2"])
def test_zeros_of_the_dense_network(name):
    family, batch = FAMILIES[name], FAMILIES[name].batch()
    model, dense = converted(name, coverage="mlp"), family.build()
    nonzero, inputs = 0, 0
    handles = []

    def look(module, arguments):
        nonlocal nonzero, inputs
        nonzero, inputs = nonzero + int((arguments[0] != 0).sum()) * 32, inputs + arguments[0].numel() * 32

    for path in family.mlp_paths:
        handles.append(dense.get_submodule(path).register_forward_pre_hook(look))
    with torch.no_grad():
        dense(**batch)
    found = counted(model, batch, network="ann").total()
    assert (found.nonzero_multiply_adds, found.dense_multiply_adds) == (nonzero, inputs)
    assert (nonzero < inputs) == (name == "opt")


def test_an_activation_that_the_neuron_replaces_is_evaluated_in_the_dense_network_only():
    model = converted(coverage="mlp", replace_activation=True, neuron="soft_reset_if")
    batch = FAMILIES["gpt2"].batch()
    assert counted(model, batch).total().activations == 0
    assert counted(model, batch, network="ann").total().activations == 27 * 48 * 2


def test_counting_changes_no_answer_and_nests():
    model, batch = converted(), FAMILIES["gpt2"].batch()
    with torch.no_grad():
        answer = model(**batch).logits
        with fas.record(model) as spikes, count_operations(model) as outer:
            assert torch.equal(model(**batch).logits, answer)
            with count_operations(model) as inner:
                model(**batch)
    assert inner.total().spikes * 2 == outer.total().spikes == sum(s.spikes for s in spikes.sites.values())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()) and not model.simulation.observers


def test_scores_that_no_values_follow_hide_nothing_elsewhere():
    class Looking(torch.nn.Module):
        def forward(self, x):
            (x @ x.transpose(1, 2)).softmax(-1)
            return x

    model, batch = converted(), FAMILIES["gpt2"].batch()
    expected = counted(model, batch, network="ann").by_place()["transformer.h.0"].float_additions
    model.transformer.h[0].mlp.dropout = Looking()
    # Of both residual connections, the second behind the scores.
    found = counted(model, batch, network="ann").by_place()["transformer.h.0"].float_additions
    assert found == expected == 27 * 32 * 2


def test_an_unknown_product_is_named(caplog):
    model = converted()
    with torch.no_grad(), count_operations(model) as counts:
        torch.einsum("ij,jk->ik", torch.ones(2, 2), torch.ones(2, 2))
    assert counts.uncounted == {"einsum": 1} and "einsum were not counted" in caplog.text


def test_attention_of_pytorch_counts_its_projections_and_all_pairs():
    attention = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    queries, keys = torch.randn(3, 5, 8), torch.randn(3, 7, 8)
    with torch.no_grad(), count_operations(converted()) as counts:
        counts.tokens["prefill"] = 1
        attention(queries, keys, keys)
    found, pairs = counts.total(), 3 * 2 * 5 * 7
    # Queries, answers, keys and values are projected; a pair costs a product of the width of a head, twice.
    assert found.multiply_adds == found.weight_words == (2 * 3 * 5 + 2 * 3 * 7) * 8 * 8 + 2 * pairs * 4
    assert (found.exponentials, found.multiplications, found.divisions) == (pairs, pairs, 3 * 2 * 5)
    assert found.outputs == (2 * 3 * 5 + 2 * 3 * 7) * 8 + pairs + 3 * 5 * 8
    assert found.weight_words_pass == 4 * 8 * 8 + 2 * 3 * 7 * 8


@pytest.mark.parametrize("offset", [-0.25, 0.0, 0.25])
def test_the_offset_of_a_query_costs_a_product_with_every_key_whatever_its_sign(offset):
    model = converted(coverage="full")
    path = "transformer.h.0.attn.operands.query"
    with torch.no_grad():
        model.get_submodule(path).neuron.offset.fill_(offset)
    counts = counted(model, FAMILIES["gpt2"].batch()).places["prefill", path]
    assert counts.multiply_adds == (27 * 32 if offset else 0)


def test_the_offset_of_a_query_meets_keys_whose_values_are_floats():
    model = converted(coverage="full", exclude=["*.operands.value"])
    path = "transformer.h.0.attn.operands.query"
    with torch.no_grad():
        model.get_submodule(path).neuron.offset.fill_(0.25)
    assert counted(model, FAMILIES["gpt2"].batch()).places["prefill", path].multiply_adds == 27 * 32


def test_factors_by_name_are_those_by_place():
    a, b, row, both = (torch.ones(*shape) for shape in ((2, 3), (3, 5), (3,), (2, 5)))
    three = torch.ones(4, 2, 3), torch.ones(4, 3, 5)
    products = [
        (lambda: torch.addmm(both, a, b), lambda: torch.addmm(mat2=b, mat1=a, input=both), 30),
        (lambda: torch.addmv(row[:2], a, row), lambda: torch.addmv(row[:2], vec=row, mat=a), 6),
        (lambda: torch.mm(a, b), lambda: a.mm(mat2=b), 30),
        (lambda: torch.mv(a, row), lambda: torch.mv(input=a, vec=row), 6),
        (lambda: torch.matmul(a, b), lambda: torch.matmul(a, other=b), 30),
        (lambda: torch.bmm(*three), lambda: three[0].bmm(mat2=three[1]), 120),
        (lambda: functional.linear(a, b.T), lambda: functional.linear(weight=b.T, input=a), 30),
        (lambda: torch.baddbmm(both, *three), lambda: torch.baddbmm(both, batch2=three[1], batch1=three[0]), 120),
    ]
    model = converted()
    for by_place, by_name, number in products:
        for product in (by_place, by_name):
            with torch.no_grad(), count_operations(model) as counts:
                product()
            assert counts.total().multiply_adds == number


def test_convolutions_and_functions():
    model = converted()
    with torch.no_grad(), count_operations(model) as counts:
        counts.tokens["prefill"] = 1
        functional.conv2d(torch.ones(2, 3, 8, 8), torch.ones(5, 3, 2, 2), stride=2)
        functional.silu(torch.ones(7))
        torch.ones(3, 4) * torch.ones(4)
        torch.ones(3) * 2.0
        torch.ones(3, dtype=torch.long) + torch.ones(3, dtype=torch.long)
    found = counts.total()
    assert (found.multiply_adds, found.activations, found.multiplications) == (2 * 5 * 16 * 12, 7, 12)
    assert found.float_additions == 0


def test_rows():
    counts = counted(converted(neuron="signed_if"), FAMILIES["gpt2"].batch())
    rows = list(counts.measurements(model="tiny"))
    assert {row.origin for row in rows} == {"measured"}
    additions = [row for row in rows if row.quantity == "additions"]
    assert math.fsum(row.value for row in additions) * 27 == pytest.approx(counts.total().additions)
    assert additions[0].unit == "additions/token" and additions[0].conditions["model"] == "tiny"
    assert {row.unit for row in rows if row.quantity == "event_bits"} == {"bit/token"}


def test_sums():
    one = Operations(spikes=2, additions=3)
    one += Operations(spikes=5, weight_words_pass=7)
    assert one == Operations(spikes=7, additions=3, weight_words_pass=7) and one.words("pass") == 7


def test_a_dense_model():
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel is not converted; call fas\.convert first"):
        count_operations(FAMILIES["gpt2"].build()).__enter__()

"""Several threads that call one converted model: each gets its own answer, or a refusal."""

import copy
import sys
import threading

import pytest
import torch
from made import once
from tiny_models import FAMILIES

import fas
from fas.errors import FASError
from fas.surgery.replace import spiking_layers

WAYS = {"collapsed": {}, "stepped": {"execution": "stepped"}, "int8": {"weights": "int8"}, "full": {}}


@once
def converted(how: str, **settings):
    family = FAMILIES["llama"]
    coverage = "full" if how == "full" else "linear"
    model = fas.convert(
        family.build(), fas.FAS(timesteps=4, coverage=coverage, neuron="signed_if"), calibration=[family.batch()]
    )
    for name, value in {**WAYS.get(how, {}), **settings}.items():
        setattr(model, name, value)
    return family, model


def in_a_thread(call):
    """Return what a call returns, or raise what it raises, in another thread."""
    found = []

    def work():
        try:
            with torch.no_grad():
                found.append(call())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def interrupting(model, call):
    """Run a call in another thread behind the first call of every layer, and return what came of it."""
    found, busy = [], []

    def behind(*_):
        if not busy:
            busy.append(True)
            found.append(in_a_thread(call))
            busy.clear()

    handles = [layer.register_forward_hook(behind) for layer in spiking_layers(model).values()]
    return found, handles


@pytest.mark.parametrize("how", WAYS)
def test_a_call_in_the_middle_of_another_changes_neither(how):
    family, model = converted(how)
    one, other = family.batch(2, 5, seed=2), family.batch(3, 7, seed=3)
    with torch.no_grad():
        wanted = [model(**inputs).logits for inputs in (one, other)]
        found, handles = interrupting(model, lambda: model(**other).logits)
        assert torch.equal(model(**one).logits, wanted[0])
    for handle in handles:
        handle.remove()
    assert len(found) == len(spiking_layers(model)) and all(torch.equal(x, wanted[1]) for x in found)


def test_what_one_thread_records_or_sets_for_a_while_is_its_own():
    family, model = converted("collapsed")
    inputs = family.batch()
    with torch.no_grad():
        wanted = model(**inputs).logits
        with fas.record(model) as alone:
            model(**inputs)
        with fas.record(model, trains=True) as spikes, model.simulation.using(network="ann"):
            assert model.network == "ann"
            assert in_a_thread(lambda: (model.network, model.execution)) == ("snn", "collapsed")
            assert torch.equal(in_a_thread(lambda: model(**inputs).logits), wanted)
        assert spikes.sites == {}
        with fas.record(model) as spikes:
            in_a_thread(lambda: model(**inputs))
            model(**inputs)
    assert spikes.spikes_per_neuron == alone.spikes_per_neuron and model.execution == "collapsed"
    assert sum(site.windows for site in spikes.sites.values()) == sum(site.windows for site in alone.sites.values())


@pytest.mark.parametrize("anytime", [False, True])
def test_online_refuses_a_second_thread_and_takes_the_next_call(anytime):
    family, model = converted("online", schedule="online")
    inputs = family.batch(1, 5)
    options = {"max_new_tokens": 2, "pad_token_id": 0, "do_sample": False}
    if anytime:
        options["custom_generate"] = fas.Anytime(margin=0.0)
    wanted = model.generate(**inputs, **options)
    found, handles = interrupting(model, lambda: model(**inputs).logits)
    with pytest.raises(FASError, match="another thread is running this model online"):
        model.generate(**inputs, **options)
    for handle in handles:
        handle.remove()
    assert found == []
    assert torch.equal(in_a_thread(lambda: model.generate(**inputs, **options)), wanted)
    assert torch.equal(copy.deepcopy(model).generate(**inputs, **options), wanted)


def hammered(how: str, calls: int) -> None:
    """Compare passes and generations of four threads at once with those of one."""
    family, model = converted(how)
    batches = [family.batch(2, 5 + i, seed=i) for i in range(4)]

    def answers(inputs):
        written = model.generate(**inputs, max_new_tokens=3, do_sample=False, pad_token_id=0)
        return model(**inputs).logits, written

    with torch.inference_mode():
        wanted = [answers(inputs) for inputs in batches]
    wrong, interval = [], sys.getswitchinterval()

    def work(i):
        for n in range(calls // 4):
            try:
                with torch.inference_mode():
                    if n % 10:
                        right = torch.equal(model(**batches[i]).logits, wanted[i][0])
                    else:
                        right = torch.equal(answers(batches[i])[1], wanted[i][1])
            except Exception as error:
                right = error
            if right is not True:
                wrong.append((i, n, right))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


def test_four_threads_at_once():
    hammered("collapsed", 60)


@pytest.mark.slow
@pytest.mark.parametrize("how", WAYS)
def test_two_thousand_calls_of_four_threads_are_all_right(how):
    hammered(how, 2000)

"""What every method must do, those of the registry and those that users write."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass, fields, is_dataclass
from typing import ClassVar, Literal

import forked
import pytest
import torch
from tiny_models import FAMILIES, logits
from transformers import AutoModelForCausalLM

import fas
from fas import registry
from fas.config import FASConfig, build_method
from fas.errors import SiteError
from fas.methods import RateCoded
from fas.neurons.phase import Phase
from fas.neurons.signed_if import SignedIF
from fas.stages.set_thresholds import SetThresholds
from fas.types import Method, Neuron, RateNeuron, Site, Stage

METHODS = registry.available("methods")
SITES = [Site("a", "mlp", 4, signed=False), Site("b", "linear_input", 4, signed=True)]


@dataclass(frozen=True, kw_only=True)
class Percentile(RateCoded):
    """A method that stands in this file, as it would in a notebook."""

    neuron = "signed_if"

    percentile: float = 99.0

    def stages(self) -> tuple[Stage, ...]:
        return (SetThresholds(rule="percentile", percentile=self.percentile),)


# As one would call it that is written after ours: only the name is the same.
FAS = type("FAS", (Percentile,), {"__module__": __name__, "__qualname__": "FAS"})


@dataclass(frozen=True)
class Burst(RateNeuron):
    """Signed IF with a number of spikes a step."""

    signed: bool = True
    most: int = 2
    exact_when: ClassVar[Literal["even", "any"]] = "even"
    emission: ClassVar[Literal["graded"]] = "graded"

    def step(self, current, potential, count, threshold, timesteps):
        potential = potential + current
        wanted = count + torch.floor(potential / threshold).clamp(-self.most, self.most)
        spikes = wanted.clamp(*self.bounds(timesteps)) - count
        return spikes, potential - threshold * spikes

    def scan(self, levels, count, timesteps):
        counts = []
        for level in levels:
            count = (count + (level - count).clamp(-self.most, self.most)).clamp(*self.bounds(timesteps))
            counts.append(count)
        return torch.stack(counts)


def through_json(config: FASConfig) -> FASConfig:
    return FASConfig(**json.loads(json.dumps(config.to_dict())))


@pytest.fixture(params=[*METHODS, "own"])
def method(request) -> Method:
    return Percentile(timesteps=5) if request.param == "own" else registry.load("methods", request.param)()


def test_it_is_a_frozen_dataclass_of_options(method):
    assert isinstance(method, Method) and is_dataclass(method)
    assert set(Method.options()) <= set(method.options()) == {field.name for field in fields(method)}
    with pytest.raises(FrozenInstanceError):
        method.timesteps = 3
    assert method.with_options(timesteps=3).timesteps == 3
    with pytest.raises(ValueError, match="timesteps is 0; expected a whole number"):
        method.with_options(timesteps=0)
    with pytest.raises(ValueError, match="schedule is 'never'; choose one of layerwise, online"):
        method.with_options(schedule="never")


def test_options_come_back_from_json(method):
    changed = method.with_options(timesteps=3, levels=5, exclude=["*.0.*"])
    assert json.loads(json.dumps(changed.to_dict())) == changed.to_dict()
    assert build_method(registry.name_of("methods", type(method)), changed.to_dict()) == changed
    again = through_json(FASConfig(changed))
    assert again.recipe == changed and type(again.recipe) is type(changed)


def test_it_builds_a_neuron_or_refuses_the_site(method):
    for site in SITES:
        try:
            neuron = method.build(site)
        except SiteError as error:
            assert site.path in str(error) and site.signed
            continue
        assert isinstance(neuron, Neuron) and (neuron.signed or not site.signed)


def test_its_stages_are_stages(method):
    assert all(isinstance(stage, Stage) for stage in (*method.stages(), *method.tuning()))
    assert not any(stage.prepares for stage in method.tuning())


def test_the_object_given_is_the_object_that_runs(method):
    method = method.with_options(coverage="mlp")
    model = fas.convert(FAMILIES["opt"].build(), method)
    assert type(model.fas_config.recipe) is type(method)
    assert model.fas_config.recipe == method.with_options(levels=model.levels)
    assert model.fas_config.method == registry.name_of("methods", type(method))


def test_all_are_imported_without_torch():
    program = (
        "import sys\nfrom fas import registry\n"
        "for name in registry.available('methods'):\n    registry.load('methods', name)\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("cls", [Percentile, FAS])
def test_a_method_of_ones_own_is_run_and_saved(cls, tmp_path):
    family = FAMILIES["gpt2"]
    model = fas.convert(family.build(), cls(timesteps=5, percentile=90.0), calibration=[family.batch()])
    assert type(model.fas_config.recipe) is cls and model.fas_config.method == f"{__name__}:{cls.__qualname__}"
    assert model.records[-1].settings == {"rule": "percentile", "percentile": 90.0}
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again.fas_config.recipe, Percentile) and again.fas_config.recipe.percentile == 90.0
    assert torch.equal(logits(again, family.batch()), logits(model, family.batch()))


MAIN = """
import torch
from dataclasses import dataclass
import transformers
import fas
from fas.methods import RateCoded
from fas.stages.set_thresholds import SetThresholds

@dataclass(frozen=True, kw_only=True)
class FAS(RateCoded):
    neuron = "signed_if"
    def stages(self):
        return (SetThresholds(rule="maximum"),)

config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50)
data = [{"input_ids": torch.arange(8).view(1, 8)}]
model = fas.convert(transformers.GPT2LMHeadModel(config), FAS(), calibration=data)
assert model.records[0].stage == "set_thresholds" and model.fas_config.method == "__main__:FAS"
model.save_pretrained("saved")
again = transformers.GPT2LMHeadModel.from_pretrained("saved")
assert type(again.fas_config.recipe) is FAS
"""


def test_a_method_of_a_script_named_like_ours(tmp_path):
    (tmp_path / "fas_.py").write_text(MAIN)
    done = forked.run(tmp_path / "fas_.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # Another process has another __main__.
    with pytest.raises(ValueError, match=r"__main__:FAS cannot be imported .*: define the class before the model is"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "saved")


def test_a_class_inside_a_function_says_what_to_do():
    @dataclass(frozen=True, kw_only=True)
    class Inner(Percentile):
        pass

    stored = FASConfig(Inner()).to_dict()
    with pytest.raises(ValueError, match="was defined inside a function, where nothing else can find it"):
        FASConfig(**stored)


@pytest.mark.parametrize("name", ["json:JSONDecoder", "json:dumps", "no.such:Thing", "json:", ":x", "a b:c"])
def test_a_name_that_is_not_a_method(name):
    with pytest.raises(ValueError, match=r"is not a Method|is not a class|cannot be imported|does not name a class"):
        FASConfig(name)


def test_code_beside_a_model_is_not_run(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "crafted.py").write_text("raise SystemExit('run')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="lies in a model's directory, whose code is not run"):
        FASConfig("crafted:Method")


@pytest.mark.parametrize(
    ("given", "expected", "stored"),
    [
        ("phase", "phase", "phase"),
        (Phase, "phase", "phase"),
        (SignedIF(signed=False), "signed_if", "signed_if"),
        (Burst, Burst(), f"{__name__}:Burst"),
        (Burst(), Burst(), f"{__name__}:Burst"),
        (Burst(most=3), Burst(most=3), {"class": f"{__name__}:Burst", "most": 3}),
        (f"{__name__}:Burst", Burst(), f"{__name__}:Burst"),
    ],
)
def test_a_neuron_may_be_a_name_an_object_or_a_class(given, expected, stored):
    method = fas.FAS(neuron=given)
    assert method.neuron == expected and method.to_dict()["neuron"] == stored
    assert through_json(FASConfig(method)).recipe == method
    assert [method.build(site).signed for site in SITES] == [False, True]


@pytest.mark.parametrize(
    "neuron", [3, None, {}, {"class": "json:JSONDecoder"}, {"class": "phase", "x": 1}, "json:dumps"]
)
def test_what_is_no_neuron(neuron):
    with pytest.raises(ValueError, match=r"neuron|is not a class"):
        fas.FAS(neuron=neuron)


def test_a_neuron_of_ones_own_runs_and_is_saved(tmp_path):
    family = FAMILIES["gpt2"]
    model = fas.convert(family.build(), fas.FAS(timesteps=4, neuron=Burst(most=3)), calibration=[family.batch()])
    assert model.fas_config.neuron == f"{__name__}:Burst:most=3"
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.fas_config.recipe.neuron == Burst(most=3)
    for settings in ({}, {"schedule": "online"}):
        assert torch.equal(logits(again, family.batch(), **settings), logits(model, family.batch(), **settings))

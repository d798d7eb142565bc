"""Stage 1 in two processes: what one finds in twice as many passes, with whole weights and with shards."""

import shutil
from types import SimpleNamespace

import pytest
import tasks
import torch
from crew import agreed, crew

from fas.errors import CheckpointError, FASError
from fas.layers.population import Population
from fas.registry import load
from fas.training.sharding import prepare_sharding

# A step of two processes is one of two accumulated passes: halves of sums of two are exact, and so is what follows.
ALONE = {"batch_size": 4, "gradient_accumulation": 2}
SHARED = {"batch_size": 4}
SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}


def tune(size, directory, settings=(), environment=(), **options):
    """Run ``tasks.tuned`` in each of several processes."""
    settings = {**(ALONE if size == 1 else SHARED), **dict(settings)}
    return crew(size, tasks.tuned, directory, settings, options, **dict(environment))


def test_a_run_that_lost_a_process_goes_on_and_ends_as_if_nothing_had_happened(tmp_path):
    settings = {"save_steps": 2}
    alone = agreed(tune(1, tmp_path / "one", settings))
    first, second = tune(2, tmp_path / "two", settings, lost=(3, 1))
    assert second is None
    assert isinstance(first, FASError) and "process 0 of 2 lost contact with another one" in str(first)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["checkpoint-2", "finetune.json"]
    assert agreed(tune(2, tmp_path / "two", settings)) == alone
    # Once more, where the end has been reached, and by another number of processes.
    assert agreed(tune(2, tmp_path / "two", settings)) == alone
    (refused,) = tune(1, tmp_path / "two", {**settings, "gradient_accumulation": 1})
    assert isinstance(refused, CheckpointError) and "its processes is 2 and not 1" in str(refused)


def test_other_data_in_every_process_is_refused(tmp_path):
    for answer in tune(2, tmp_path, other_data=True):
        assert isinstance(answer, FASError) and "data, weights and settings of fine-tuning: process 1" in str(answer)
    assert not any(tmp_path.iterdir())


def test_shards_train_what_one_process_trains(tmp_path):
    # Without a norm of gradients, which shards sum in another order. On some processors products of a shard round
    # otherwise than those of the whole weight: in float64 no count lies so near to a step that this moves it.
    settings, options = {"max_grad_norm": 0.0, "save_steps": 2}, {"control": True, "dtype": torch.float64}
    alone = agreed(tune(1, tmp_path / "one", settings, **options))
    shared = agreed(tune(2, tmp_path / "two", settings, SHARDED, **options))
    # Trainer adds losses up in float32: 2**-24 of four, and of their mean.
    assert shared[2] == pytest.approx(alone[2], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "sharded"])
@pytest.mark.parametrize(
    "settings", [{"precision": "bf16"}, {"gradient_checkpointing": True, "spike_price": 0.1}, {"weight_decay": 0.1}]
)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_settings_train_alike(family, settings, kind, tmp_path):
    settings = {**settings, "max_grad_norm": 0.0}
    alone = agreed(tune(1, tmp_path / "one", settings, family=family))
    assert agreed(tune(2, tmp_path / "two", settings, SHARDED if kind == "sharded" else (), family=family)) == alone


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["SHARDED_STATE_DICT", "FULL_STATE_DICT"])
def test_checkpoints_of_shards_go_on(kind, tmp_path):
    settings, whole = {"max_grad_norm": 0.0, "save_steps": 2}, {**SHARDED, "FSDP_STATE_DICT_TYPE": kind}
    alone = agreed(tune(1, tmp_path / "one", settings))
    assert agreed(tune(2, tmp_path / "two", settings, whole)) == alone
    assert agreed(tune(2, tmp_path / "two", settings, whole)) == alone
    shutil.rmtree(tmp_path / "two" / "checkpoint-4")
    assert agreed(tune(2, tmp_path / "two", settings, whole)) == alone


@pytest.mark.slow
def test_a_larger_batch_differs_by_rounding_only(tmp_path):
    # In float64 no count lies so near to a step that the order of sums moves it: four steps of at most 1e-3 each.
    options = {"dtype": torch.float64}
    alone = agreed(tune(1, tmp_path / "one", {"batch_size": 16, "gradient_accumulation": 1}, **options))
    shared = agreed(tune(4, tmp_path / "four", **options))
    # Trainer adds losses up in float32: 2**-24 of four, and of their mean.
    assert shared[2] == pytest.approx(alone[2], rel=1e-6)


def test_shards_on_cpus_are_refused(tmp_path):
    for answer in tune(2, tmp_path, (), {**SHARDED, "UNCHANGED": "1"}):
        assert isinstance(answer, ValueError) and "on accelerators only and not among 2 processes on cpu" in str(answer)


def test_what_cannot_be_sharded_is_refused():
    def trainer(version, model):
        state = SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=version))
        return SimpleNamespace(accelerator=SimpleNamespace(state=state), model=model)

    with pytest.raises(ValueError, match="fsdp_version is 1 in accelerate's configuration: set it to 2"):
        prepare_sharding(trainer(1, torch.nn.Linear(2, 2)))
    population = Population("here", 3, load("neurons", "signed_if")(), None, granularity="tensor")
    with pytest.raises(ValueError, match="log_threshold is a single number, which FSDP cannot shard"):
        prepare_sharding(trainer(2, population))


@pytest.mark.slow
def test_half_precision_is_not_sharded(tmp_path):
    for answer in tune(2, tmp_path, (), SHARDED, dtype=torch.bfloat16):
        assert isinstance(answer, ValueError) and "is torch.bfloat16, and weights are sharded in" in str(answer)

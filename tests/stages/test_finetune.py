"""Stage 1: that it learns, resumes to the last bit, and that its control is a plain fine-tuning."""

import copy
import functools
import importlib.util
import json
import shutil
import tempfile
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from made import once
from tiny_models import FAMILIES
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import fas
from fas.conversion import convert
from fas.data.table import Table, tokenise_table
from fas.errors import CheckpointError, DataError, FASError, MissingExtraError, NotCalibratedError
from fas.methods.fas import FAS
from fas.stages.finetune import Finetune
from fas.surgery.replace import neuron_parameters, populations
from fas.training.finetuning import finetune, language_modelling, tuned
from fas.training.losses import mean_loss
from fas.training.trainer import ThresholdTrainer, recomputing

# Rows that can be learned: every token is its predecessor plus a constant of the row.
ROWS = (torch.arange(12) * torch.randint(1, 4, (24, 1), generator=torch.Generator().manual_seed(0))) % 40
DATA = language_modelling(ROWS)
PAPER = FAS(timesteps=8, coverage="mlp", neuron="soft_reset_if", replace_activation=True)
# Two epochs of three steps, and checkpoints in the middle of both.
SHORT = Finetune(epochs=2, learning_rate=1e-3, save_steps=2, logging_steps=1)


def dense(dropout=0.1, seed=0):
    torch.manual_seed(seed)
    config = GPT2Config(
        n_embd=32, n_layer=2, n_head=2, vocab_size=40, n_positions=16, bos_token_id=0, eos_token_id=0,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


@once
def converted(method=PAPER, **options):
    return convert(dense(**options), method, calibration=[{"input_ids": ROWS[:8]}])


def words():
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3, "film": 4}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def reviews(labels):
    """Rows of unequal length whose label depends on one word."""
    return Table(
        [f"{'good' if i % 2 else 'bad'}{' film' * (i % 3)}" for i in range(16)],
        None,
        labels,
        "classification",
    )


@once
def classifier(num_labels=2, **options):
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, vocab_size=5,
        max_position_embeddings=16, num_labels=num_labels, **options,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    return convert(model, FAS(timesteps=8), calibration=[{"input_ids": torch.tensor([[2, 4], [3, 4]])}])


class Interrupt(TrainerCallback):
    """Stops training after a step, with or without a checkpoint."""

    def __init__(self, step, save=True):
        self.step, self.save = step, save

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            control.should_training_stop, control.should_save = True, self.save


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole():
    """The network after an uninterrupted run."""
    return ended()


def ended():
    model = converted()
    with tempfile.TemporaryDirectory() as place:
        tuned(SHORT, model, DATA, output_dir=place)
    return model


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Interrupted runs, by step: the network, its record and the directory."""

    @functools.cache
    def run(step):
        model, place = converted(), tmp_path_factory.mktemp("interrupted")
        record = tuned(SHORT, model, DATA, output_dir=place, callbacks=[Interrupt(step)])
        return SimpleNamespace(model=model, record=record, place=place)

    return run


@pytest.fixture
def interrupted(runs, tmp_path):
    """Return a copy of the directory that a run has left when it was interrupted after a step."""
    return lambda step: shutil.copytree(runs(step).place, tmp_path / "interrupted")


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """An uninterrupted run with its control: network, record and control."""
    model = converted()
    place = tmp_path_factory.mktemp("beside")
    record, control = finetune(model, DATA, SHORT, output_dir=place, eval_dataset=DATA)
    return SimpleNamespace(model=model, record=record, control=control, place=place)


# Learning


def test_the_papers_network_learns_and_spikes_what_it_learned(tmp_path):
    model = converted()
    before = {path: p.threshold.detach().clone() for path, p in populations(model).items()}
    settings = Finetune(max_steps=40, learning_rate=5e-3, threshold_learning_rate=1e-2)
    record = tuned(settings, model, DATA, output_dir=tmp_path, eval_dataset=DATA)
    # ln 40 = 3.7 at the start; the rows hold three patterns.
    assert record.results["eval_loss_before"] > 3
    assert record.results["eval_loss_after"] < record.results["eval_loss_before"] - 1
    assert record.results["steps"] == 40
    assert record.settings == {**settings.__dict__}
    for path, population in populations(model).items():
        assert bool((population.threshold > 0).all())
        assert not torch.equal(population.threshold, before[path])
        assert record.sites[path]["threshold_log_change"] > 0
        assert population.log_threshold.dtype == torch.float32
        assert bool(((population.v_init >= 0) & (population.v_init < 1)).all())
    assert (model.network, model.training, model.levels) == ("snn", False, model.timesteps)
    with torch.no_grad():
        spiking = model(input_ids=ROWS).logits
        with model.simulation.using(execution="stepped"):
            stepped = model(input_ids=ROWS).logits
        with model.simulation.using(network="quantised"):
            quantised = model(input_ids=ROWS).logits
    # The same counts in another order of float32 operations.
    torch.testing.assert_close(spiking, quantised, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(stepped, quantised, atol=1e-5, rtol=1e-5)


def test_all_parameters_of_the_neurons_have_a_rate_of_their_own_and_no_decay(tmp_path):
    model = converted(FAS(timesteps=4))
    settings = replace(SHORT, threshold_learning_rate=0.0, weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    tuned(settings, model, DATA, output_dir=tmp_path)
    own = neuron_parameters(model)
    kinds = {name.rpartition(".")[2] for name in own}
    assert kinds == {"log_threshold", "v_init", "offset", "correction"}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in own), name


def test_the_initial_potential_stays_below_the_threshold(tmp_path):
    model = converted(FAS(timesteps=4))
    with torch.no_grad():
        for population in populations(model).values():
            population.v_init.copy_(torch.linspace(0, 1, population.channels))
    tuned(replace(SHORT, threshold_learning_rate=0.3), model, DATA, output_dir=tmp_path)
    values = torch.cat([p.v_init.detach() for p in populations(model).values()])
    assert 0 <= float(values.min()) and float(values.max()) < 1


@pytest.mark.parametrize("labels", [[i % 2 for i in range(16)], [float(i % 2) for i in range(16)]])
def test_classification_and_regression_of_rows_of_unequal_length(tmp_path, labels):
    regression = isinstance(labels[0], float)
    model, tokenizer = classifier(1 if regression else 2), words()
    rows = tokenise_table(reviews(labels), tokenizer)
    settings = Finetune(max_steps=24, learning_rate=1e-2, gradient_accumulation=2, batch_size=4)
    record, control = finetune(model, rows, settings, output_dir=tmp_path, tokenizer=tokenizer, eval_dataset=rows)
    results = record.results
    assert results["eval_loss_after"] < results["eval_loss_before"] / 2
    assert results["control_eval_loss_after"] < results["control_eval_loss_before"] / 2
    assert type(control) is BertForSequenceClassification


def test_the_mean_loss_weighs_every_target_once(tmp_path):
    model = dense()
    labels = ROWS.clone()
    labels[0, 1:9] = -100
    rows = [{"input_ids": i, "labels": label} for i, label in zip(ROWS, labels, strict=True)]
    with torch.no_grad():
        whole = float(model(input_ids=ROWS, labels=labels).loss)
    stack = torch.utils.data.default_collate
    # Sums of 256 losses near 3.7 in float32, in another order.
    assert mean_loss(model, rows, stack, 5) == pytest.approx(whole, rel=1e-6)


# The price of spikes


def test_dearer_spikes_are_fewer_and_the_control_does_not_pay(tmp_path):
    spent, controls = [], []
    for price in (0.0, 0.1, 1.0):
        model = converted(FAS(timesteps=8, neuron="signed_if"), dropout=0.0)
        settings = Finetune(max_steps=24, learning_rate=5e-3, spike_price=price)
        _, control = finetune(model, DATA, settings, output_dir=tmp_path / str(price), control=price != 0.1)
        with fas.record(model) as spikes, torch.no_grad():
            model(input_ids=ROWS)
        spent.append(spikes.spikes_per_neuron)
        controls += [control] if control is not None else []
        assert not any(p._forward_pre_hooks for p in populations(model).values())
    assert spent[0] > 1.1 * spent[1] > 1.5 * spent[2]
    assert same(*controls)


def test_an_interrupted_run_with_a_price_resumes(tmp_path, whole):
    settings = replace(SHORT, spike_price=0.1, gradient_checkpointing=True)
    priced, first, second = converted(), converted(), converted()
    tuned(settings, priced, DATA, output_dir=tmp_path / "whole")
    tuned(settings, first, DATA, output_dir=tmp_path / "parts", callbacks=[Interrupt(3)])
    tuned(settings, second, DATA, output_dir=tmp_path / "parts")
    assert same(second, priced) and not same(whole, priced)


# Resuming


@pytest.mark.parametrize("step", [2, 3])
def test_an_interrupted_run_ends_with_the_very_weights_of_an_uninterrupted_one(whole, runs, interrupted, step):
    # Dropout is on: the random states have to come back too.
    assert runs(step).record.results["steps"] == step and not same(runs(step).model, whole)
    model = converted()
    record = tuned(SHORT, model, DATA, output_dir=interrupted(step), eval_dataset=DATA)
    assert record.results["steps"] == 6
    assert same(model, whole)


@pytest.mark.parametrize(
    "name", ["llama", "t5", *(pytest.param(n, marks=pytest.mark.slow) for n in ("bert_mlm", "albert"))]
)
def test_other_architectures_resume_and_their_checkpoints_lack_nothing(tmp_path, name):
    family = FAMILIES[name]

    begun = convert(family.build(), FAS(timesteps=4), calibration=[family.batch()])
    batch = family.batch(rows=12)
    batch["labels"] = batch["decoder_input_ids" if family.seq2seq else "input_ids"]
    rows = [{key: value[i] for key, value in batch.items()} for i in range(12)]
    settings = Finetune(max_steps=4, batch_size=4, gradient_checkpointing=name != "albert")
    whole, first, second = (copy.deepcopy(begun) for _ in range(3))
    tuned(settings, whole, rows, output_dir=tmp_path / "whole")
    tuned(settings, first, rows, output_dir=tmp_path / "parts", callbacks=[Interrupt(2)])
    tuned(settings, second, rows, output_dir=tmp_path / "parts")
    assert same(second, whole)


def test_a_checkpoint_is_a_converted_directory(tmp_path):
    model = converted()
    tuned(SHORT, model, DATA, output_dir=tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-6")
    assert same(loaded, model)
    assert loaded.network == "snn"
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]


@pytest.mark.parametrize("settings", [SHORT, Finetune(max_steps=5, save_steps=2)])
def test_a_finished_run_is_loaded_and_not_trained_further(tmp_path, settings):
    model, again, steps = converted(), converted(), []
    first = tuned(settings, model, DATA, output_dir=tmp_path)
    record = tuned(settings, again, DATA, output_dir=tmp_path, progress=lambda *told: steps.append(told))
    assert same(again, model) and steps == []
    for name in ("steps", "epochs", "train_loss"):
        assert record.results[name] == first.results[name]


def test_a_checkpoint_that_was_not_written_to_the_end_is_passed_over(whole, interrupted):
    model, place = converted(), interrupted(5)
    (place / "checkpoint-5" / "trainer_state.json").write_text('{"global_step"')
    tuned(SHORT, model, DATA, output_dir=place)
    assert same(model, whole)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("optimizer.pt", lambda content: content[: len(content) // 2]),
        ("rng_state.pth", lambda content: content.replace(content[100:110], b"\1" * 10)),
        ("scheduler.pt", lambda _: b""),
        ("optimizer.pt", None),
        ("model.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(whole, interrupted, caplog, name, damage):
    model, place = converted(), interrupted(5)
    file = place / "checkpoint-5" / name
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    tuned(SHORT, model, DATA, output_dir=place)
    assert f"{file.parent} is damaged" in caplog.text and same(model, whole)


@pytest.mark.parametrize(
    ("field", "settings", "data", "method", "seed"),
    [
        ("learning_rate", replace(SHORT, learning_rate=1e-4), DATA, PAPER, 0),
        ("data", SHORT, language_modelling(ROWS.flip(0)), PAPER, 0),
        ("weights", SHORT, DATA, PAPER, 1),
        ("levels", SHORT, DATA, replace(PAPER, timesteps=4), 0),
        ("sites", SHORT, DATA, replace(PAPER, neuron="signed_if"), 0),
    ],
)
def test_checkpoints_of_another_run_are_refused_and_the_difference_is_named(
    interrupted, field, settings, data, method, seed
):
    with pytest.raises(CheckpointError, match=rf"begun by another run: its {field} is .*and not .*or remove"):
        tuned(settings, converted(method, seed=seed), data, output_dir=interrupted(2))


def test_a_run_that_shall_not_resume_starts_over(tmp_path, whole):
    tuned(Finetune(max_steps=9, save_steps=2), converted(), DATA, output_dir=tmp_path)
    again = converted()
    record = tuned(SHORT, again, DATA, output_dir=tmp_path, resume=False)
    assert record.results["steps"] == 6 and same(again, whole)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]


def test_what_leaves_the_result_alone_may_change_on_the_way(whole, interrupted):
    model = converted()
    other = replace(SHORT, gradient_checkpointing=True, save_steps=5, logging_steps=3, save_total_limit=1)
    tuned(other, model, DATA, output_dir=interrupted(3))
    assert same(model, whole)


def test_directories_of_other_programs_and_damaged_ones_are_refused(tmp_path):
    (tmp_path / "checkpoint-7").mkdir()
    with pytest.raises(CheckpointError, match=r"checkpoint-7 but no finetune\.json.*another output_dir"):
        tuned(SHORT, converted(), DATA, output_dir=tmp_path, resume=False)
    assert (tmp_path / "checkpoint-7").is_dir()
    (tmp_path / "finetune.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"finetune\.json is damaged"):
        tuned(SHORT, converted(), DATA, output_dir=tmp_path)


def test_a_checkpoint_that_lacks_parameters_is_refused(interrupted):
    place = interrupted(2)
    dense().save_pretrained(place / "checkpoint-2")
    (place / "checkpoint-2" / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match="does not fit GPT2LMHeadModel"):
        tuned(SHORT, converted(), DATA, output_dir=place)


# The control


def test_the_control_is_a_plain_fine_tuning_of_the_dense_model_on_the_same_rows(tmp_path):
    model, seen = converted(), []

    def collate(rows):
        batch = torch.utils.data.default_collate(rows)
        seen.append(batch["input_ids"])
        return batch

    record, control = finetune(model, DATA, SHORT, output_dir=tmp_path / "ours", collator=collate)
    assert len(seen) == 12
    assert all(torch.equal(a, b) for a, b in zip(seen[:6], seen[6:], strict=True))
    assert model.records[-1] is record and record.results["control_steps"] == record.results["steps"] == 6
    plain = dense()
    arguments = TrainingArguments(
        str(tmp_path / "plain"), num_train_epochs=2, learning_rate=1e-3, seed=0, data_seed=0, report_to=[],
        save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(plain, arguments, train_dataset=DATA)
    # A mean over the targets of the batch, not their sum divided by their number: other rounding.
    trainer.model_accepts_loss_kwargs = False
    trainer.train()
    assert type(control) is GPT2LMHeadModel and not any("neuron" in name for name in control.state_dict())
    assert same(control, plain)
    assert same(AutoModelForCausalLM.from_pretrained(tmp_path / "ours" / "control"), control)


def test_the_control_starts_from_the_dense_model(beside):
    expected = mean_loss(dense(), DATA, torch.utils.data.default_collate, 8)
    assert beside.record.results["control_eval_loss_before"] == expected
    assert json.loads((beside.place / "control" / "finetune.json").read_text())["network"] == "dense"


def test_an_interrupted_control_resumes(tmp_path, beside):
    class Crash(Exception):
        pass

    def progress(label, done, total):
        if label == "fine-tune control" and done == 5:
            raise Crash

    resumed = converted()
    with pytest.raises(Crash):
        finetune(converted(), DATA, SHORT, output_dir=tmp_path / "parts", progress=progress)
    told = []
    record, control = finetune(
        resumed, DATA, SHORT, output_dir=tmp_path / "parts", progress=lambda *step: told.append(step)
    )
    assert told == [("fine-tune control", 5, 6), ("fine-tune control", 6, 6)]
    assert same(resumed, beside.model) and same(control, beside.control)
    assert record.results["control_train_loss"] == beside.record.results["control_train_loss"]


def test_the_control_stops_where_the_quantised_network_was_stopped(tmp_path, beside):
    model = converted()
    record, _ = finetune(model, DATA, SHORT, output_dir=tmp_path, callbacks=[Interrupt(3)])
    assert (record.results["steps"], record.results["control_steps"]) == (3, 3)
    record, _ = finetune(converted(), DATA, SHORT, output_dir=tmp_path)
    assert record.results["control_steps"] == 6
    assert record.results["control_train_loss"] == beside.record.results["control_train_loss"]


def test_no_control_where_none_is_asked_for(tmp_path):
    record, control = finetune(converted(), DATA, SHORT, output_dir=tmp_path, control=False)
    assert control is None and not (tmp_path / "control").exists()
    assert not any(name.startswith("control") for name in record.results)


# Precision, memory and accumulation


def test_bfloat16_keeps_parameters_in_float32_and_leaves_no_trace(tmp_path, whole):
    model = converted()
    settings = Finetune(max_steps=20, learning_rate=5e-3, precision="bf16")
    record = tuned(settings, model, DATA, output_dir=tmp_path / "half", eval_dataset=DATA)
    assert record.results["eval_loss_after"] < record.results["eval_loss_before"] - 0.5
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert "forward" not in vars(model) and model(input_ids=ROWS).logits.dtype == torch.float32
    model.schedule = "online"
    assert len(model.logits_per_step(input_ids=ROWS)) == 8
    # The next run of the process computes in float32 again.
    assert same(ended(), whole)


def test_bfloat16_weights_leave_thresholds_in_float32(tmp_path):
    model = converted()
    own = neuron_parameters(model)
    for name, parameter in model.named_parameters():
        if name not in own:
            parameter.data = parameter.data.bfloat16()
    tuned(SHORT, model, DATA, output_dir=tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-6")
    for network in (model, loaded):
        dtypes = {name: parameter.dtype for name, parameter in network.named_parameters()}
        assert {dtypes[name] for name in own} == {torch.float32}
        assert {dtype for name, dtype in dtypes.items() if name not in own} == {torch.bfloat16}
    assert same(loaded, model)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "opt", "bert_classifier", "roberta", "t5", "bart", "vit"])
def test_gradients_are_the_same_under_gradient_checkpointing(name):
    family = FAMILIES[name]
    model = convert(family.build(), FAS(timesteps=4), calibration=[family.batch()])
    model.network = "quantised"
    model.train()
    batch = family.batch()

    def gradients():
        model.zero_grad()
        torch.manual_seed(1)
        model(**batch, **({} if family.image else {"use_cache": False})).logits.square().mean().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    with recomputing(model):
        recomputed = gradients()
    assert any(".log_threshold" in name for name in plain)
    assert plain.keys() == recomputed.keys()
    largest = max(float(gradient.abs().max()) for gradient in plain.values())
    for name, gradient in plain.items():
        if family.seq2seq:
            # What the decoder's blocks share is encoded for each, and its gradient summed in another order.
            torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-6 * largest)
        else:
            assert torch.equal(recomputed[name], gradient), name
    torch.testing.assert_close(gradients(), plain)


@pytest.mark.parametrize("task", ["language", "classes", "values"])
def test_accumulated_gradients_equal_those_of_a_large_batch(tmp_path, task):
    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            self.seen = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    def gradients(batch_size, accumulation):
        callback, tokenizer = Gradients(), words()
        settings = Finetune(max_steps=1, batch_size=batch_size, gradient_accumulation=accumulation, max_grad_norm=0)
        # float64, or the rounding of other batch sizes would push inputs over a floor.
        if task == "language":
            model, rows = converted(dropout=0).double(), DATA
        else:
            kind, labels = (float, 1) if task == "values" else (int, 2)
            model = classifier(labels, hidden_dropout_prob=0, attention_probs_dropout_prob=0).double()
            rows = tokenise_table(reviews([i % 2 for i in range(16)]), tokenizer)
            # The loss of values is computed in the dtype of the labels.
            rows = [{**row, "labels": kind(row["labels"])} for row in rows]
        collator = None if task == "language" else DataCollatorWithPadding(tokenizer, "max_length", max_length=4)
        tuned(settings, model, rows, output_dir=tmp_path / str(batch_size), collator=collator, callbacks=[callback])
        return callback.seen

    large, small = gradients(8, 1), gradients(2, 4)
    assert large.keys() == small.keys()
    for name, gradient in large.items():
        # Losses are computed in float32 (2^-24 relative), everything else in float64.
        torch.testing.assert_close(small[name], gradient, rtol=1e-5, atol=1e-6 * float(gradient.abs().max()) + 1e-9)


# Refusals


def test_models_that_cannot_be_trained_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel is not converted; call fas\.convert"):
        tuned(SHORT, dense(), DATA, output_dir=tmp_path)
    with pytest.raises(NotCalibratedError, match=r"c_proj has no thresholds yet.*fas\.calibrate"):
        finetune(convert(dense(), PAPER), DATA, SHORT, output_dir=tmp_path)
    model = converted()
    model.lm_head.weight.data = model.lm_head.weight.data.half()
    with pytest.raises(ValueError, match=r"wte\.weight is float16, which is too coarse"):
        tuned(SHORT, model, DATA, output_dir=tmp_path)
    if not torch.accelerator.is_available():
        with pytest.raises(ValueError, match="fp16', which needs an accelerator"):
            tuned(replace(SHORT, precision="fp16"), converted(), DATA, output_dir=tmp_path)
    assert not any(tmp_path.iterdir())


def test_data_that_cannot_be_trained_on_are_refused(tmp_path):
    model = converted()
    with pytest.raises(DataError, match="no rows"):
        tuned(SHORT, model, [], output_dir=tmp_path)
    with pytest.raises(DataError, match=r"\['input_ids'\] but no 'labels'"):
        tuned(SHORT, model, [{"input_ids": ROWS[0]}], output_dir=tmp_path)
    with pytest.raises(DataError, match="17 tokens but GPT2LMHeadModel has 16 positions"):
        tuned(SHORT, model, language_modelling(torch.zeros(2, 17, dtype=torch.int64)), output_dir=tmp_path)
    for rows in (torch.zeros(0, 5), torch.zeros(3, 1), torch.zeros(4)):
        with pytest.raises(DataError, match="expected windows"):
            language_modelling(rows.long())
    tokenizer = words()
    tokenizer.pad_token = None
    with pytest.raises(DataError, match=r"no padding token: set tokenizer\.pad_token"):
        tuned(SHORT, model, DATA, output_dir=tmp_path, tokenizer=tokenizer)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    model = converted()
    settings = Finetune(max_steps=20, learning_rate=1e30, max_grad_norm=0, save_steps=1)
    with pytest.raises(FASError, match=r"the loss is (nan|inf) after \d+ steps.*lower them"):
        tuned(settings, model, DATA, output_dir=tmp_path)
    assert model.network == "snn" and not model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0; expected a number above 0"),
        ({"max_steps": 0}, "max_steps is 0; expected a whole number of at least 1"),
        ({"max_steps": 1.5}, "max_steps is 1.5"),
        ({"batch_size": True}, "batch_size is True"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"threshold_learning_rate": -1}, "threshold_learning_rate is -1; expected a number of at least 0"),
        ({"distillation": 1.5}, r"distillation is 1\.5; expected a share from 0 to 1"),
        ({"warmup": 1.0}, "warmup is 1.0; expected a share"),
        ({"seed": -1}, "seed is -1"),
        ({"scheduler": "step"}, "scheduler is 'step'; choose one of linear, cosine"),
        ({"precision": "int8"}, "precision is 'int8'; choose one of fp32, bf16, fp16"),
    ],
)
def test_settings_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Finetune(**options)


# What is told on the way


def test_progress_log_and_events(tmp_path, caplog, capsys):
    steps = []
    with caplog.at_level("INFO", "fas"):
        settings = replace(SHORT, tensorboard=True, warmup=0.5)
        tuned(settings, converted(), DATA, output_dir=tmp_path, progress=lambda *step: steps.append(step))
    assert steps == [("fine-tune", step, 6) for step in range(1, 7)]
    assert "fine-tune, step 6 of 6" in caplog.text
    assert capsys.readouterr().out == ""
    assert list((tmp_path / "runs").rglob("events.out.tfevents.*"))


def test_the_absence_of_tensorboard_names_the_extra(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "tensorboard" else find(name))
    with pytest.raises(MissingExtraError, match=r"pip install 'fas\[train\]'"):
        tuned(replace(SHORT, tensorboard=True), converted(), DATA, output_dir=tmp_path)


def test_a_run_leaves_the_models_settings_as_they_were(tmp_path):
    model = converted()
    model.network, model.config.use_cache = "quantised", False
    tuned(replace(SHORT, gradient_checkpointing=True), model.train(), DATA, output_dir=tmp_path)
    assert (model.network, model.config.use_cache, model.training) == ("quantised", False, True)
    assert not model.is_activation_checkpointing
    assert all(parameter.grad is None for parameter in model.parameters())


def test_three_groups_of_parameters(tmp_path):
    model = converted()
    arguments = TrainingArguments(str(tmp_path), weight_decay=0.1, learning_rate=1e-4, report_to=[])
    trainer = ThresholdTrainer(threshold_learning_rate=1e-2, model=model, args=arguments)
    decay, plain, own = trainer.create_optimizer().param_groups
    assert [group["weight_decay"] for group in (decay, plain, own)] == [0.1, 0.0, 0.0]
    assert [group["lr"] for group in (decay, plain, own)] == [1e-4, 1e-4, 1e-2]
    assert len(own["params"]) == len(neuron_parameters(model))
    assert sum(len(group["params"]) for group in (decay, plain, own)) == len(list(model.parameters()))

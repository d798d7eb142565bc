"""Out of memory: fewer rows at a time, and the same answer."""

import pytest
import torch
from transformers import GPT2LMHeadModel

ROWS = 3


@pytest.fixture
def small(monkeypatch) -> list[int]:
    """A device that holds three rows."""
    forward, sizes = GPT2LMHeadModel.forward, []

    def limited(self, input_ids=None, **named):
        sizes.append(len(input_ids))
        if len(input_ids) > ROWS:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, input_ids=input_ids, **named)

    monkeypatch.setattr(GPT2LMHeadModel, "forward", limited)
    return sizes


def test_evaluation_goes_on_with_fewer_rows(run, rows, snn, text, monkeypatch, request):
    command = ["evaluate", snn, "--data", text, "--window", 16, "--test-tokens", 128, "--batch-size", 8]
    whole = {row["quantity"]: row["value"] for row in rows(*command)}
    sizes = request.getfixturevalue("small")
    said = run(*command, "--json")
    assert "out of memory with 8 rows at a time: continuing with 4" in said.stderr and "with 2" in said.stderr
    assert max(size for size in sizes[2:]) <= 2
    found = {row["quantity"]: row["value"] for row in rows(*command)}
    assert found["spikes_per_neuron"] == whole["spikes_per_neuron"]
    # Rows are computed together in another order: float32 rounding.
    assert found["perplexity"] == pytest.approx(whole["perplexity"], rel=1e-5)


def test_calibration_goes_on_with_fewer_rows(run, dense, text, small, tmp_path):
    command = ["convert", dense, tmp_path / "out", "--data", text, "--tokens", 256, "--window", 16, "--batch-size", 8]
    said = run(*command)
    assert "continuing with 4" in said.stderr and "continuing with 2" in said.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file() and not (tmp_path / "out.calibrating").exists()


def test_one_row_too_many_is_an_error(run, snn, text, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(GPT2LMHeadModel, "forward", full)
    said = run("evaluate", snn, "--data", text, "--window", 16, "--test-tokens", 64, code=1)
    assert "out of memory" in said.stderr

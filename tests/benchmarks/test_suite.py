from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.suite import suite
from benchmarks.suite.interleave import Timing
from benchmarks.suite.roofline import Roofline
from benchmarks.suite.subjects import chosen
from benchmarks.suite.suite import Suite

from fas.errors import FASError
from fas.methods.fas import FAS
from fas.types import Measurement


@pytest.fixture
def plan(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    monkeypatch.setattr(suite.limits, "measure", lambda device: Roofline(read=1e9, copy=2e9, flops=3e9))
    return Suite(
        tuple(chosen(["collapsed", "reference", "spikingjelly-qwen2"])), (str(directory),),
        FAS(timesteps=3, neuron="signed_if"),
        prompt=6, new=4, batches=(1, 2), rounds=2, tokens=32, memory=False, kernels=False, growth=False,
    )  # fmt: skip


def of(rows: list[Measurement], quantity: str, **conditions: Any) -> list[Measurement]:
    return [
        row
        for row in rows
        if row.quantity == quantity and all(row.conditions.get(k) == v for k, v in conditions.items())
    ]


def test_figures_follow_from_the_seconds(plan: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known seconds in, tokens per second, ratios and latency out."""
    seconds = {"dense": (1.0, 1.0, 4.0), "collapsed": (0.5, 1.0, 2.0), "reference": (2.0, 8.0)}

    def timed(programs: dict[str, Any], **options: Any) -> dict[str, Timing]:
        return {name: Timing(seconds[name], 1) for name in programs}

    monkeypatch.setattr(suite, "interleaved", timed)
    rows = list(plan.run())
    # 6 tokens in 1 s, for the first batch only.
    assert of(rows, "prefill", subject="dense")[0].value == 6.0
    assert not of(rows, "prefill", subject="dense", batch=2)
    # Per token and back again: rounding.
    assert of(rows, "prefill", subject="dense")[0].conditions["interquartile"] == pytest.approx([2.4, 6.0])
    # Round by round 2, 1 and 2 times as fast.
    assert of(rows, "prefill.speed", subject="collapsed", batch=1)[0].value == 2.0
    assert of(rows, "prefill.speed_over_reference", subject="collapsed", batch=1)[0].value == 6.0
    # 4 tokens for each of 2 sequences in 1 s.
    assert of(rows, "decode", subject="collapsed", batch=2)[0].value == 8.0
    assert of(rows, "latency", subject="collapsed", batch=2)[0].value == 250.0
    # Without a cache one token takes 2 s and 8 s; dense takes 0.25 s for one of its four.
    assert of(rows, "latency", subject="reference", batch=1)[0].value == 5000.0
    assert of(rows, "decode.speed", subject="reference", batch=1)[0].value == (0.125 + 0.03125) / 2
    assert of(rows, "prefill", subject="reference", batch=1)[0].conditions["rounds"] == 2


def test_a_real_run(plan: Suite) -> None:
    rows = list(plan.run())
    (absent,) = of(rows, "absent")
    assert absent.conditions["subject"] == "spikingjelly-qwen2" and "qwen2" in absent.conditions["reason"]
    assert {row.conditions["subject"] for row in of(rows, "decode", batch=1)} == {
        "roofline", "roofline-int8", "dense", "collapsed", "reference",
    }  # fmt: skip
    assert of(rows, "bandwidth.read")[0].value == 1.0 and of(rows, "matrix_product")[0].value == 3.0
    assert of(rows, "calibration")[0].conditions["tokens"] == 32 and of(rows, "conversion")[0].value > 0
    errors = {row.conditions["subject"]: row.value for row in of(rows, "logit_error")}
    assert errors.keys() == {"collapsed", "reference"} and 0 < errors["collapsed"] < 1
    assert all(row.conditions.keys() >= {"model", "network", "threads", "device"} for row in rows)


def test_limits_count_the_work_of_the_shape(plan: Suite, directory: Path) -> None:
    rows = list(plan.run())
    prefill, decode = (of(rows, quantity, subject="roofline", batch=2)[0] for quantity in ("prefill", "decode"))
    blocks = 2 * (4 * 32 * 32 + 2 * 48 * 32)
    assert prefill.origin == decode.origin == "estimated"
    assert prefill.conditions["bytes"] == 4 * (blocks + 3200)
    # Two operations per weight and token, the head for the last position only; attention comes on top.
    linear = 2 * (2 * 6 * blocks + 2 * 3200)
    assert linear <= prefill.conditions["flops"] < 1.1 * linear
    assert decode.value == pytest.approx(2 / (decode.conditions["bytes"] / 1e9))
    int8 = of(rows, "decode", subject="roofline-int8", batch=2)[0]
    assert int8.conditions["bytes"] == decode.conditions["bytes"] / 4


def test_neurons_and_growth(plan: Suite) -> None:
    only = replace(plan, sizes=(), kernels=True, growth=True, kernel_shape=(5, 7), growth_axes={"timesteps": (1, 2)})
    rows = list(only.run())
    for row in of(rows, "neuron"):
        subject = row.conditions["subject"]
        limit, above = (of(rows, f"neuron.{name}", subject=subject)[0].value for name in ("limit", "above_limit"))
        # Milliseconds of both; a median of one sample is that sample.
        assert above == pytest.approx(row.value / limit) and row.conditions["shape"] == [3, 5, 7]
    assert of(rows, "neuron.speed", subject="loop")[0].value == 1.0
    assert [row.conditions["timesteps"] for row in of(rows, "growth", subject="collapsed")] == [1, 2]
    assert {row.conditions["subject"] for row in of(rows, "growth.exponent")} == {"dense", "collapsed", "reference"}


def test_memory_is_related_to_dense(plan: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {"dense": suite.memory.Peak(2**20, 4 * 2**20), "collapsed": suite.memory.Peak(2**21, 6 * 2**20)}

    def measured(job: suite.memory.Job) -> suite.memory.Peak:
        assert Path(job.parameters).is_file() and job.batch == 1
        if job.subject == "reference":
            raise suite.AbsentError("it was too large")
        return peaks[job.subject]

    monkeypatch.setattr(suite.memory, "peak", measured)
    rows = list(replace(plan, memory=True).run())
    assert of(rows, "memory.above_model", subject="collapsed")[0].value == 2.0
    assert of(rows, "memory.ratio", subject="collapsed")[0].value == 1.5
    assert "too large" in of(rows, "absent", subject="reference")[0].conditions["reason"]


def test_a_prompt_beyond_the_context_is_refused(plan: Suite) -> None:
    with pytest.raises(FASError, match=r"takes 64 tokens.*60 \+ 5"):
        list(replace(plan, prompt=60, new=5).run())

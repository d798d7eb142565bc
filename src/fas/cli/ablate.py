"""``fas ablate``: what each part of the calibration is worth."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fas.cli.program.method_options import method_options
from fas.cli.program.options import BatchSize, Data, Device, Json, Model, Seed, TestData, TestTokens, Tokens, Window
from fas.cli.program.output import Output
from fas.evaluation.compare import Data as Seen
from fas.evaluation.compare import Plan, compare_plans

# Each part on top of those before it.
_PARTS: dict[str, dict[str, bool]] = {
    "none (maximum)": {"coarse": False, "fine": False},
    "coarse": {"coarse": True, "fine": False},
    "coarse + fine": {"coarse": True, "fine": True},
}


@method_options
def ablate(
    context: typer.Context,
    model: Model,
    options: dict[str, Any],
    data: Data = None,
    test_data: TestData = None,
    losses: Annotated[bool, typer.Option(help="Add the row with the FAS loss (alignment + KL): minutes.")] = True,
    tokens: Tokens = 16384,
    test_tokens: TestTokens = 16384,
    window: Window = None,
    batch_size: BatchSize = 8,
    device: Device = "cpu",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Convert a dense model four times: thresholds by maximum, coarse, coarse and fine, with the losses.

    Method options hold for every row.

    Example: `fas ablate embedded --timesteps 8 --coverage linear`
    """
    with Output.opened(context, as_json) as output:
        from fas.config import build_method

        for name in ("coarse", "fine"):
            if name in options:
                raise ValueError(f"--{name} is what fas ablate varies: leave it out, or use fas convert")
        plans = [Plan(part, build_method("fas", {**options, **switches})) for part, switches in _PARTS.items()]
        if losses:
            plans.append(Plan("coarse + fine + losses", plans[-1].method, losses=True))
        seen = Seen(data, test_data, tokens, test_tokens, window, batch_size, seed=seed)
        compare_plans(output, model, plans, seen, device=device, title="Ablation of")

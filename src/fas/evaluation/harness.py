"""The backend ``fas`` of lm-evaluation-harness: converted models on any of its tasks."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fas.errors import CheckpointError, DataError, MissingExtraError
from fas.evaluation.local_tasks import local_names, local_task
from fas.recording import Recording
from fas.runtime.transformers_ import ConvertedModel
from fas.settings import SETTINGS
from fas.storage.digest import digest
from fas.storage.resume import Once, directly
from fas.surgery.replace import populations, spiking_layers
from fas.types import Measurement

try:
    from lm_eval import simple_evaluate
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
except ModuleNotFoundError as error:
    raise MissingExtraError(
        f"tasks run in lm-evaluation-harness, which is not complete ({error.name} is missing): pip install 'fas[eval]'"
    ) from error

# Draws for the standard error of a perplexity or a correlation; the error of the error is 2 %.
DRAWS = 1000
# Requests that are answered together: many batches, and minutes rather than hours of work.
STRETCH = 512


class Stretches(HFLM):
    """The harness's backend ``hf``, whose answers come in stretches that an interrupted run need not repeat.

    A stretch is batched by itself, so that its answers are the same whichever others have been given already.

    Attributes:
        once: answers a stretch, or returns what an earlier run has answered (see ``fas.storage.resume``).
    """

    once: Once = staticmethod(directly)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return log-likelihood and whether it is the greedy answer, for each (context, continuation)."""
        answers = self._answered(super().loglikelihood, requests, disable_tqdm)
        return [(value, greedy) for value, greedy in answers]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text."""
        return self._answered(super().loglikelihood_rolling, requests, disable_tqdm)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes after each context."""
        return self._answered(super().generate_until, requests, disable_tqdm)

    def _answered(self, answer: Callable[..., Any], requests: Sequence[Any], quiet: bool) -> list[Any]:
        found: list[Any] = []
        for start in range(0, len(requests), STRETCH):
            stretch = requests[start : start + STRETCH]
            asked = digest([repr([request.args for request in stretch]).encode()])[:16]
            found += self.once(f"{answer.__name__} {asked}", partial(answer, stretch, quiet))
        return found


@register_model("fas")
class SpikingLM(Stretches):
    """A converted model as a backend of lm-evaluation-harness, which counts its spikes.

    ``python -m fas.evaluation.harness --model fas --model_args pretrained=DIR,timesteps=8 --tasks …`` is the
    harness's own command line with this backend; in Python, ``import fas.evaluation.harness`` registers it for
    ``lm_eval.simple_evaluate(model="fas", …)``. Batches, the cache of keys and values, few-shot prompts and
    generation are those of the harness's ``hf`` backend.

    Args:
        pretrained: directory or hub name of a converted model, or the model itself.
        timesteps: T, at thresholds as calibrated; levels that were those of the model's own T follow it. Its T if None.
        network: ``snn``, ``quantised`` or ``ann``.
        schedule: ``layerwise`` or ``online``; the model's if None.
        operators: ``difference`` or ``instant``; the model's if None.
        execution: ``collapsed`` or ``stepped``; the model's if None.
        device: as torch names it; the first accelerator, else the CPU, if None.
        options: those of the ``hf`` backend (``batch_size``, ``dtype``, ``max_length``, ``tokenizer``, …).

    Attributes:
        recording: spikes since the last ``forget``.

    Raises:
        CheckpointError: the model is dense, or spiking layers are missing in it: transformers loads a converted
            directory as the dense model where nothing has imported ``fas``.
        NotCalibratedError: thresholds have not been set.
        ValueError: a value that a setting does not have.
    """

    def __init__(self, pretrained: Any, *, device: str | None = None, **options: Any) -> None:
        given = {name: options.pop(name) for name in SETTINGS if options.get(name) is not None}
        options = {name: value for name, value in options.items() if name not in SETTINGS}
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        super().__init__(pretrained=pretrained, device=device, **options)
        _check_spikes(self.model, str(pretrained) if isinstance(pretrained, str) else type(pretrained).__name__)
        for name, value in {"network": "snn", **given}.items():
            setattr(self.model, name, value)
        self.forget()

    def _create_model(self, *arguments: Any, **options: Any) -> None:
        with warnings.catch_warnings():
            # The harness states once more what the directory states itself, of which transformers warns.
            warnings.filterwarnings("ignore", message="You passed `quantization_config`", category=UserWarning)
            super()._create_model(*arguments, **options)

    def forget(self) -> None:
        """Start counting spikes again."""
        self.recording = Recording(simulation=self.model.simulation)

    @property
    def spikes_per_neuron(self) -> float | None:
        """Mean spikes of a neuron over the window since the last ``forget``; None where nothing spikes."""
        return self.recording.spikes_per_neuron if self.model.network == "snn" else None

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes beside its results, with the settings of the spiking network."""
        model = self.model
        settings = {name: getattr(model, name) for name in SETTINGS}
        recipe = model.fas_config.recipe
        method = {"method": model.fas_config.method, "coverage": recipe.coverage, "neuron": model.fas_config.neuron}
        spikes = {"spikes_per_neuron": self.spikes_per_neuron}
        return {**super().get_model_info(), "fas": {**method, **settings, **spikes}}

    def _answered(self, *arguments: Any) -> list[Any]:
        simulation = self.model.simulation
        with simulation.using(observers=[*simulation.observers, self.recording]):
            return super()._answered(*arguments)


def score(
    lm: Any, task: str, *, task_path: Path | None = None, limit: int | None = None, fewshot: int | None = None
) -> list[Measurement]:
    """Run a task, or a group of tasks, of lm-evaluation-harness.

    Args:
        lm: ``SpikingLM``, or another backend for dense models.
        task: name of a task, group or tag.
        task_path: folder with jsonl files (see ``local_task``) or the harness's YAML files; what is not there
            is looked for among the harness's own tasks, whose data come from the hub.
        limit: rows per task, from the first.
        fewshot: examples in the prompt, from the task's own training rows; the task's own number if None. A
            task of a jsonl file has test rows only, and takes its examples from the others of these.

    Returns:
        Every figure that the harness reports, by its own name of the metric (acc, acc_norm, perplexity, …; the filter
        behind a comma where one was applied), for every part of a group. Its conditions are ``data`` (the task),
        ``samples`` (rows scored; None for a group), ``fewshot``, ``stderr`` (None where there is none) and
        ``task_version``. Last, where anything spikes, ``spikes_per_neuron`` over the whole task.

    Raises:
        DataError: no task of that name; local files that make none.
        OSError: data that the hub does not have, or no hub.
    """
    found, manager = _find(task, task_path)
    if isinstance(lm, SpikingLM):
        lm.forget()
    # The harness prints on stdout what it is doing.
    with contextlib.redirect_stdout(sys.stderr):
        results = simple_evaluate(
            model=lm, tasks=[found], task_manager=manager, num_fewshot=fewshot, limit=limit, bootstrap_iters=DRAWS,
            log_samples=False,
        )  # fmt: skip
    rows = []
    for name, figures in results["results"].items():
        for key, value in figures.items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr") or isinstance(value, str):
                continue
            stderr = figures.get(f"{metric}_stderr,{filtered}")
            about = {
                "data": name,
                "samples": results["n-samples"].get(name, {}).get("effective"),
                "fewshot": results["n-shot"].get(name),
                "stderr": None if stderr is None or isinstance(stderr, str) else float(stderr),
                "task_version": results["versions"].get(name),
            }
            rows.append(Measurement(metric if filtered == "none" else key, float(value), "1", conditions=about))
    spikes = lm.spikes_per_neuron if isinstance(lm, SpikingLM) else None
    if spikes is not None:
        rows.append(Measurement("spikes_per_neuron", spikes, "spikes/neuron", conditions={"data": task}))
    return rows


def _find(task: str, task_path: Path | None) -> tuple[Any, Any]:
    """Return what the harness takes for a task, and the manager that knows it."""
    if task_path is not None:
        if not task_path.is_dir():
            raise DataError(f"{task_path} is not a directory: name one with jsonl or YAML files of tasks")
        local = local_task(task, task_path)
        manager = TaskManager(include_path=str(task_path), include_defaults=False)
        if local is not None or task in manager.all_tasks:
            return local or task, manager
    # Reads thousands of files, which takes seconds.
    manager = TaskManager()
    if task not in manager.all_tasks:
        here = "" if task_path is None else f" in {task_path} ({', '.join(local_names(task_path)) or 'no jsonl'})"
        alike = [name for name in manager.all_tasks if task.lower() in name.lower()][:5]
        raise DataError(
            f"no task {task!r}{here}; of the {len(manager.all_tasks)} that lm-evaluation-harness has, "
            + (f"these are alike: {', '.join(alike)}" if alike else "none is alike: `lm_eval ls tasks` lists them")
        )
    return task, manager


def _check_spikes(model: Any, name: str) -> None:
    if not isinstance(model, ConvertedModel):
        raise CheckpointError(
            f"{name} is dense: convert it first with fas.convert, or evaluate it with the harness's own backend, hf"
        )
    wanted, there = sum(len(site.layers) for site in model.sites), len(spiking_layers(model))
    if there != wanted or len(populations(model)) != len(model.sites):
        raise CheckpointError(
            f"{name} has {there} spiking layers where its configuration names {wanted}: load it again with fas"
        )
    for population in populations(model).values():
        population.check()


def main() -> None:
    """Run the harness's own command line, which knows the backend ``fas`` now."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()

"""NeuroBench's complexity metrics of a converted model: by our own counts, and by its package."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fas.energy.count import count_operations
from fas.errors import MissingExtraError
from fas.recording import record
from fas.surgery.probe import evaluating
from fas.surgery.replace import spiking_layers
from fas.surgery.sites import is_linear

_CONNECTIONS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def neurobench_metrics(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, float]:
    """Return NeuroBench's metrics under its key names, from our own counts.

    ``Effective_ACs``: non-zero spikes times fan-out, per sample. ``Effective_MACs``: of connection layers that
    stay dense. ``Dense``: both if every neuron fired at every step. ``activation_sparsity``: share of zeros
    among neurons, positions and steps. ``membrane_updates``: per sample. ``footprint``: bytes of parameters and
    buffers. ``connection_sparsity``: share of zeros in the weights of connection layers.

    Deviation: NeuroBench leaves out operations with weights that are exactly zero; trained dense weights have
    none. Attention products and normalisation are not connection layers, and left out (see ``estimate_energy``).

    Args:
        model: a converted model of coverage ``mlp`` or ``linear``, layerwise.
        inputs: of its forward; a row is a sample.

    Raises:
        ValueError: a model that is not converted.

    Source: NeuroBench (arXiv 2304.04640), section on complexity metrics.
    """
    with count_operations(model) as counts, model.simulation.using(network="snn"), evaluating(model):
        model(**inputs)
    samples = _samples(inputs)
    layers, total = spiking_layers(model), counts.total()
    dense = [path for path, module in model.named_modules() if is_linear(module) or isinstance(module, _CONNECTIONS)]
    multiply_adds = sum(found.multiply_adds for path, found in counts.by_place().items() if path in dense)
    weights = [layer.weight for layer in layers.values()] + [model.get_submodule(path).weight for path in dense]
    held = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()
    return {
        "footprint": float(sum(tensor.numel() * tensor.element_size() for tensor in held)),
        "connection_sparsity": sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights),
        "activation_sparsity": 1 - total.events / total.membrane_updates,
        "Effective_MACs": multiply_adds / samples,
        "Effective_ACs": total.synaptic / samples,
        "Dense": (total.dense_multiply_adds * model.timesteps + multiply_adds) / samples,
        "membrane_updates": total.membrane_updates / samples,
    }


def neurobench_package_metrics(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, float]:
    """Return what the classes of the ``neurobench`` package say of the same run, where they can see it.

    The package looks for ``nn.Linear`` and snnTorch neurons. It is shown the recorded spike trains at linear
    layers with our weights; GPT-2's ``Conv1D``, where it stays dense, it does not see.

    Raises:
        MissingExtraError: the package is not installed.
    """
    try:
        from neurobench.hooks.layer import LayerHook
        from neurobench.metrics.static import Footprint
        from neurobench.metrics.workload import ActivationSparsity, SynapticOperations
    except ImportError as error:
        raise MissingExtraError(
            f"NeuroBench's own metrics need its package: pip install neurobench ({error})"
        ) from None
    dense = [LayerHook(module) for module in model.modules() if isinstance(module, _CONNECTIONS)]
    try:
        with record(model, trains=True) as spikes, model.simulation.using(network="snn"), evaluating(model):
            model(**inputs)
        layers, shown = spiking_layers(model), []
        with torch.no_grad():
            for site in model.sites:
                for path in site.layers:
                    linear = nn.Linear(layers[path].in_features, layers[path].out_features, bias=False)
                    weight = layers[path].weight
                    linear.weight = nn.Parameter((weight.T if layers[path].transposed else weight).float())
                    hook = LayerHook(linear)
                    for train in spikes.sites[site.path].trains:
                        for step in train:
                            linear(step.float())
                    shown.append(hook)
        trains = [SimpleNamespace(activation_outputs=site.trains) for site in spikes.sites.values()]
        seen = SimpleNamespace(connection_hooks=[*dense, *shown], activation_hooks=trains)
        operations = SynapticOperations()(seen, None, (torch.empty(_samples(inputs)), None))
        return {
            "footprint": float(Footprint()(SimpleNamespace(__net__=lambda: model))),
            "activation_sparsity": float(ActivationSparsity()(seen, None, None)),
            **{name: float(value) for name, value in operations.items()},
        }
    finally:
        for hook in dense:
            hook.close()


def _samples(inputs: Mapping[str, Tensor]) -> int:
    return len(next(iter(inputs.values())))

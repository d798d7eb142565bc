"""Small convolutional networks with torchvision's names, defined here: plain modules and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


def settle(model: nn.Module) -> nn.Module:
    """Give batch normalisations statistics that differ from zero and one."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            size = module.num_features
            module.running_mean = torch.randn(size, generator=generator) * 0.2
            module.running_var = torch.rand(size, generator=generator) + 0.5
            if module.affine:
                module.weight.data = torch.rand(size, generator=generator) + 0.5
                module.bias.data = torch.randn(size, generator=generator) * 0.2
    return model.eval()


class VGG(nn.Module):
    """Convolution, normalisation, ReLU; maxima between; three linear layers."""

    def __init__(self, pool: type[nn.Module] = nn.MaxPool2d, inplace: bool = True) -> None:
        super().__init__()

        def stage(ins: int, outs: int) -> list[nn.Module]:
            return [nn.Conv2d(ins, outs, 3, padding=1), nn.BatchNorm2d(outs), nn.ReLU(inplace)]

        self.features = nn.Sequential(
            *stage(3, 6), pool(2), *stage(6, 7), *stage(7, 8), pool(2), *stage(8, 9)
        )  # fmt: skip
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(nn.Linear(36, 10), nn.ReLU(inplace), nn.Dropout(), nn.Linear(10, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class Block(nn.Module):
    """A residual block; ``shared`` uses one ReLU module twice, as torchvision does."""

    def __init__(self, ins: int, outs: int, stride: int, shared: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outs)
        self.relu2 = self.relu if shared else nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(nn.Conv2d(ins, outs, 1, stride, bias=False), nn.BatchNorm2d(outs))
            if stride > 1 or ins != outs
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu2(out)


class ResNet(nn.Module):
    """A stem and four blocks, of which one has a projection."""

    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Block(6, 6, 1, shared), Block(6, 6, 1, shared))
        self.layer2 = nn.Sequential(Block(6, 8, 2, shared), Block(8, 8, 1, shared))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Functional(nn.Module):
    """ReLU as a function, and a pre-activation block whose normalisation reads a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 1, 1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv1 = nn.Conv2d(6, 6, 3, 1, 1, groups=2, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, 1, 1)
        self.bn3 = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv1(functional.relu(self.bn1(x)))
        x = x + self.conv2(functional.relu(self.bn2(y)))
        return self.head(functional.relu(self.bn3(x)).mean((2, 3)))


def images(rows: int = 4, size: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(seed))


NETWORKS = {
    "vgg": VGG,
    "vgg_average": lambda: VGG(nn.AvgPool2d),
    "resnet": ResNet,
    "resnet_shared_relu": lambda: ResNet(shared=True),
    "functional": Functional,
}


def build(name: str) -> nn.Module:
    torch.manual_seed(1)
    return settle(NETWORKS[name]())


class Chain(nn.Module):
    """Convolutions and a linear layer with a ReLU module between each two: the networks that papers write down."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 7, 3, stride=2, padding=1), nn.BatchNorm2d(7), nn.ReLU(),
            nn.Conv2d(7, 5, 3, stride=2), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


def chain() -> nn.Module:
    """Return a chain in double precision whose activations are of order one in every layer."""
    torch.manual_seed(1)
    model = Chain()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            nn.init.normal_(module.bias, std=0.1)
    return settle(model).double()


def layers_of(model: nn.Module) -> list[Callable[[Tensor], Tensor]]:
    """Return the four layers of a folded chain as functions, without any module of the library."""
    found = []
    for path, stride, padding in (("features.0", 1, 1), ("features.3", 2, 1), ("features.6", 2, 0)):
        module = model.get_submodule(path)
        weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
        found.append(lambda x, w=weight, b=bias, s=stride, p=padding: functional.conv2d(x, w, b, s, p))
    weight, bias = model.head.weight.detach().clone(), model.head.bias.detach().clone()
    found.append(lambda x, w=weight, b=bias: functional.linear(x.flatten(1), w, b))
    return found


def simulate(
    layers: list[Callable[[Tensor], Tensor]],
    x: Tensor,
    thresholds: list[Tensor],
    timesteps: int,
    potential: float,
    take_back: bool = False,
) -> tuple[list[Tensor], Tensor]:
    """Run a spiking network as the papers state it: all layers at each step, one after the other.

    Returns:
        Spikes of every neuron layer [T, *B, …] in {−1, 0, 1}, and the answer after every step: the mean output.
    """
    potentials = [None] * len(thresholds)
    counts = [0.0] * len(thresholds)
    trains: list[list[Tensor]] = [[] for _ in thresholds]
    total, answers = 0, []
    for step in range(1, timesteps + 1):
        current = layers[0](x)
        for i, threshold in enumerate(thresholds):
            v = potential * threshold * torch.ones_like(current) if potentials[i] is None else potentials[i]
            v = v + current
            spike = (v >= threshold).to(v.dtype)
            if take_back:
                spike = spike - ((v < 0) & (counts[i] > 0)).to(v.dtype)
            potentials[i], counts[i] = v - threshold * spike, counts[i] + spike
            trains[i].append(spike)
            current = layers[i + 1](threshold * spike)
        total = total + current
        answers.append(total / step)
    return [torch.stack(train) for train in trains], torch.stack(answers)

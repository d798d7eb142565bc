"""The networks that papers on conversion use, in any width, written as plain modules: nothing is imported for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class VGG16(nn.Module):
    """Thirteen convolutions with normalisation, five maxima, three linear layers (Simonyan and Zisserman 2014)."""

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        ins = 3
        for times, factor in ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8)):
            for _ in range(times):
                layers += [nn.Conv2d(ins, factor * width, 3, padding=1), nn.BatchNorm2d(factor * width), nn.ReLU(True)]
                ins = factor * width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(ins, 64 * width), nn.ReLU(True), nn.Dropout(),
            nn.Linear(64 * width, 64 * width), nn.ReLU(True), nn.Dropout(), nn.Linear(64 * width, classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class BasicBlock(nn.Module):
    """Two convolutions beside the identity, a projection, or (``pad``) every second pixel and channels of zeros."""

    def __init__(self, ins: int, outs: int, stride: int, pad: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outs)
        self.conv2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outs)
        self.relu = nn.ReLU(True)
        self.added = outs - ins if pad else 0
        self.shortcut = nn.Sequential()
        if not pad and (stride > 1 or ins != outs):
            self.shortcut = nn.Sequential(nn.Conv2d(ins, outs, 1, stride, bias=False), nn.BatchNorm2d(outs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.added:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        return self.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """Residual networks for small images (He et al. 2015): 18 layers in four stages, or 20 in three with ``pad``."""

    def __init__(self, width: int, times: tuple[int, ...], pad: bool, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        ins = width
        for stage, count in enumerate(times):
            for i in range(count):
                outs = width << stage
                blocks.append(BasicBlock(ins, outs, 2 if stage and not i else 1, pad))
                ins = outs
        self.layers = nn.Sequential(*blocks)
        self.linear = nn.Linear(ins, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(functional.relu(self.bn1(self.conv1(x))))
        return self.linear(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class PreActBlock(nn.Module):
    """Normalisation and ReLU in front of each convolution, and in front of the projection."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(ins)
        self.conv1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outs)
        self.conv2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        if stride > 1 or ins != outs:
            self.shortcut = nn.Conv2d(ins, outs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        return self.conv2(functional.relu(self.bn2(self.conv1(out)))) + shortcut


class PreActResNet18(nn.Module):
    """Eight pre-activation blocks (He et al. 2016); normalisations read sums, which nothing can be folded into."""

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        blocks: list[nn.Module] = []
        ins = width
        for stage in range(4):
            for i in range(2):
                blocks.append(PreActBlock(ins, width << stage, 2 if stage and not i else 1))
                ins = width << stage
        self.layers = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(ins)
        self.linear = nn.Linear(ins, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn(self.layers(self.conv1(x))))
        return self.linear(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class EncoderBlock(nn.Module):
    """Attention and MLP; ``packed`` as torchvision has it, else with layers of its own as timm has it."""

    def __init__(self, width: int, heads: int, packed: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2, self.heads = nn.LayerNorm(width), nn.LayerNorm(width), heads
        if packed:
            self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        else:
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(), nn.Linear(4 * width, width), nn.Dropout()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        if hasattr(self, "self_attention"):
            y, _ = self.self_attention(y, y, y, need_weights=False)
        else:
            rows, tokens, width = y.shape
            parts = self.qkv(y).reshape(rows, tokens, 3, self.heads, width // self.heads)
            query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
            y = functional.scaled_dot_product_attention(query, key, value)
            y = self.proj(y.transpose(1, 2).reshape(rows, tokens, width))
        x = x + y
        return x + self.mlp(self.ln_2(x))


class VisionTransformer(nn.Module):
    """Patches, a token for the class, blocks (Dosovitskiy et al. 2020)."""

    def __init__(
        self, width: int, packed: bool, size: int = 32, patch: int = 8, depth: int = 2, heads: int = 2
    ) -> None:
        super().__init__()
        self.conv_proj = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width))
        self.layers = nn.Sequential(*[EncoderBlock(width, heads, packed) for _ in range(depth)])
        self.ln, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.ln(self.layers(x))[:, 0])


# By name: the network in a width, and the width that its paper has.
NETWORKS: dict[str, tuple[Callable[[int], nn.Module], int]] = {
    "vgg16": (VGG16, 64),
    "resnet18": (lambda width: ResNet(width, (2, 2, 2, 2), pad=False), 64),
    "resnet20": (lambda width: ResNet(width, (3, 3, 3), pad=True), 16),
    "preact_resnet18": (PreActResNet18, 64),
}


def photographs(rows: int) -> Tensor:
    return torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(name: str, width: int) -> nn.Module:
    """Return a random network whose normalisations hold the statistics of its own activations."""
    torch.manual_seed(0)
    model = NETWORKS[name][0](width)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(photographs(4))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()

"""Train a small VGG- or ResNet-shaped network on images, on one core of a CPU.

    python tools/train_cnn.py --data DIR --network vgg --out build/models/cnn-vgg
    python tools/train_cnn.py --data DIR --network resnet --out build/models/cnn-resnet

`--data` holds train.tar.gz and test.tar.gz (or folders train and test) with one folder of jpeg or png per class. The
first `--per-class` photographs of every class by name train, the next `--held-out` are for choosing settings, and the
test set is not read. `--out` gets `model.safetensors` and `config.json`, which says how it was made; `load_network`
reads it back. `benchmarks/cnn.py` compares conversion methods on it.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn import functional

from fas.data.images import AugmentedBatches, Images, image_batches, read_images
from fas.evaluation.classify import classify_images


def _stage(ins: int, outs: int) -> list[nn.Module]:
    return [nn.Conv2d(ins, outs, 3, padding=1), nn.BatchNorm2d(outs), nn.ReLU(inplace=True)]


class VGG(nn.Module):
    """Six convolutions with normalisation, maxima between, one hidden linear layer."""

    def __init__(self, width: int = 24, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        ins = 3
        for outs in (width, 2 * width, 4 * width):
            layers += [*_stage(ins, outs), *_stage(outs, outs), nn.MaxPool2d(2)]
            ins = outs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(64 * width, 128), nn.ReLU(inplace=True), nn.Linear(128, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, 3, 32, 32] to logits [B, classes]."""
        logits: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return logits


class BasicBlock(nn.Module):
    """Two convolutions beside the identity or a projection."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outs)
        self.relu2 = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(nn.Conv2d(ins, outs, 1, stride, bias=False), nn.BatchNorm2d(outs)) if ins != outs else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, ins, H, W] to [B, outs, H', W']."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        output: Tensor = self.relu2(y)
        return output


class ResNet(nn.Module):
    """A stem and three stages of one block."""

    def __init__(self, width: int = 24, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(BasicBlock(width, width, 1))
        self.layer2 = nn.Sequential(BasicBlock(width, 2 * width, 2))
        self.layer3 = nn.Sequential(BasicBlock(2 * width, 4 * width, 2))
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, 3, 32, 32] to logits [B, classes]."""
        x = self.layer3(self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x))))))
        logits: Tensor = self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


NETWORKS: dict[str, type[Any]] = {"vgg": VGG, "resnet": ResNet}


def read_part(data: Path, part: str, per_class: int) -> Images:
    """Read the first images of every class of ``train`` or ``test``, a folder or an archive."""
    folder = data / part
    return read_images(folder if folder.is_dir() else data / f"{part}.tar.gz", per_class=per_class)


def load_network(directory: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return a trained network in evaluation mode, and what its config.json says of it."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    model = NETWORKS[config["network"]](config["width"])
    load_model(model, str(directory / "model.safetensors"))
    return model.eval(), config


def train(model: nn.Module, images: Images, *, epochs: int, rate: float, rows: int, seed: int) -> None:
    """Train by SGD with a rising and falling rate, mirrors and shifts, products in bfloat16."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    total = epochs * -(-len(images) // rows)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=total, pct_start=0.25)
    model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    for epoch in range(epochs):
        began, losses = time.perf_counter(), []
        for batch in AugmentedBatches(image_batches(images, rows, seed=seed + epoch), seed=seed + epoch):
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(batch["x"].contiguous(memory_format=torch.channels_last))
            loss = functional.cross_entropy(logits.float(), batch["labels"], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(
            f"epoch {epoch + 1} of {epochs}: loss {sum(losses) / len(losses):.3f}, {time.perf_counter() - began:.0f} s",
            flush=True,
        )
    model.eval()


def main() -> None:
    """Parse the command line, train and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--network", choices=sorted(NETWORKS), default="vgg")
    parser.add_argument("--width", type=int, default=24)
    parser.add_argument("--per-class", type=int, default=2000)
    parser.add_argument("--held-out", type=int, default=100, help="photographs of every class behind those that train")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--rate", type=float, default=0.1, help="largest learning rate")
    parser.add_argument("--rows", type=int, default=100, help="images of a batch")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    model = NETWORKS[a.network](a.width)
    everything = read_part(a.data, "train", a.per_class + a.held_out)
    began = time.perf_counter()
    train(model, everything.part(0, a.per_class), epochs=a.epochs, rate=a.rate, rows=a.rows, seed=a.seed)
    seconds = time.perf_counter() - began
    held_out = classify_images(model, image_batches(everything.part(a.per_class), 100))["accuracy"]
    print(f"{seconds:.0f} s, {100 * held_out:.1f} % of {10 * a.held_out} held-out photographs", flush=True)
    a.out.mkdir(parents=True, exist_ok=True)
    about = {name: value for name, value in vars(a).items() if name not in ("data", "out")}
    described = {**about, "training_s": seconds, "held_out_accuracy": held_out, "torch": torch.__version__}
    (a.out / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    save_model(model, str(a.out / "model.safetensors"))


if __name__ == "__main__":
    main()

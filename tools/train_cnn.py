"""Train a small VGG- or ResNet-shaped network on images, on a CPU, and compare the conversion methods on it.

    python tools/train_cnn.py --data DIR --network resnet --per-class 1000 --minutes 6

`--data` holds train.tar.gz and test.tar.gz (or folders train and test) with one folder of jpeg or png per class. The
table is of a named subset: the first `--per-class` photographs of every class by name for training, of which
`--calibration` calibrate, and the first `--test-per-class` of the test set.
"""

import argparse
import copy
import json
import time
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn import functional

import fas
from fas.data.images import Images, image_batches, read_images
from fas.evaluate.images import classify_images
from fas.methods.fast_snn import FastSNN
from fas.methods.qcfs_only import QCFSOnly
from fas.methods.rate_norm import RateNorm
from fas.methods.threshold_balancing import ThresholdBalancing


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


NETWORKS: dict[str, type[nn.Module]] = {"vgg": VGG, "resnet": ResNet}


def train(model: nn.Module, images: Images, minutes: float, seed: int) -> int:
    """Train by SGD with flips and shifts until the time is over; return the number of steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    rng = torch.Generator().manual_seed(seed)
    began, step, shown = time.monotonic(), 0, 0.0
    model.train()
    while True:
        for batch in image_batches(images, 64, seed=seed + step):
            share = (time.monotonic() - began) / (60 * minutes)
            if share >= 1:
                return step
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * min(share / 0.1, (1 - share) / 0.9) + 1e-4
            x = batch["x"]
            if int(torch.randint(2, (1,), generator=rng)):
                x = x.flip(-1)
            top, left = (int(v) for v in torch.randint(9, (2,), generator=rng))
            x = functional.pad(x, (4, 4, 4, 4))[..., top : top + 32, left : left + 32]
            loss = functional.cross_entropy(model(x), batch["labels"], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if share - shown > 0.1:
                shown = share
                print(f"{share:.0%} step {step} loss {loss.item():.3f}", flush=True)


def table(
    model: nn.Module, data: list[dict[str, Tensor]], test: list[dict[str, Tensor]], steps: list[int]
) -> dict[str, dict[str, float]]:
    """Return the accuracy of every method at every T, in percent."""
    methods = {
        "threshold_balancing maximum": lambda t: ThresholdBalancing(timesteps=t),
        "threshold_balancing 99.9 %": lambda t: ThresholdBalancing(timesteps=t, rule="percentile"),
        "qcfs_only": lambda t: QCFSOnly(timesteps=t, levels=t),
        "rate_norm (stage 2)": lambda t: RateNorm(timesteps=t),
        "fast_snn (thresholds)": lambda t: FastSNN(timesteps=t, levels=t, tune_epochs=0),
        "fast_snn (tuned)": lambda t: FastSNN(timesteps=t, levels=t),
        "fas online": lambda t: fas.FAS(timesteps=t, schedule="online"),
        "fas layerwise": lambda t: fas.FAS(timesteps=t),
    }
    found: dict[str, dict[str, float]] = {}
    for name, make in methods.items():
        for timesteps in steps:
            snn = fas.convert(
                copy.deepcopy(model), make(timesteps), probe={"x": data[0]["x"][:1]},
                calibration=[{"x": batch["x"]} for batch in data],
            )  # fmt: skip
            found.setdefault(name, {})[str(timesteps)] = 100 * classify_images(snn, test)["accuracy"]
            if name.startswith("fast_snn"):
                snn.network = "quantised"
                beside = found.setdefault(f"{name}, quantised network", {})
                beside[str(timesteps)] = 100 * classify_images(snn, test)["accuracy"]
        print(name, found[name], flush=True)
    return found


def main() -> None:
    """Parse the command line, train or load, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--network", choices=sorted(NETWORKS), default="resnet")
    parser.add_argument("--width", type=int, default=24)
    parser.add_argument("--per-class", type=int, default=1000)
    parser.add_argument("--test-per-class", type=int, default=100)
    parser.add_argument("--calibration", type=int, default=256, help="training photographs that calibrate")
    parser.add_argument("--timesteps", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--minutes", type=float, default=6, help="wall-clock budget of the training")
    parser.add_argument("--out", type=Path, default=Path("build/models/cnn"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    model = NETWORKS[a.network](a.width)
    weights = a.out / f"{a.network}.safetensors"

    def source(part: str) -> Path:
        folder: Path = a.data / part
        return folder if folder.is_dir() else a.data / f"{part}.tar.gz"

    images = read_images(source("train"), per_class=a.per_class)
    test = image_batches(read_images(source("test"), per_class=a.test_per_class), 100)
    if weights.is_file():
        load_model(model, str(weights))
    else:
        steps = train(model, images, a.minutes, a.seed)
        a.out.mkdir(parents=True, exist_ok=True)
        save_model(model, str(weights))
        print(f"{steps} steps", flush=True)
    model.eval()
    calibration = image_batches(images, 64, seed=a.seed)[: -(-a.calibration // 64)]
    dense = 100 * classify_images(model, test)["accuracy"]
    print(f"dense {dense:.2f} %", flush=True)
    result = {
        "data": f"{a.per_class}/{a.test_per_class} per class",
        "dense": dense,
        **table(model, calibration, test, a.timesteps),
    }
    (a.out / f"{a.network}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

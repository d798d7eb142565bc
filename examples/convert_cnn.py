"""Train a small convolutional network for a few seconds, convert it, and look at accuracy over the time steps."""

import torch
from torch import nn

import fas

torch.manual_seed(0)


def images(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy pictures [n, 1, 12, 12] of a bar that lies, stands or leans either way, with the class."""
    classes = torch.randint(4, (number,))
    row, column = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    slopes = torch.stack([row - 5.5, column - 5.5, row - column, row + column - 11])
    return (slopes[classes].abs() < 1.2).float().unsqueeze(1) + 0.6 * torch.randn(number, 1, 12, 12), classes


model = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
    nn.Flatten(), nn.Linear(64, 4),
)  # fmt: skip
optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
for _ in range(60):
    x, y = images(64)
    loss = nn.functional.cross_entropy(model(x), y)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
model.eval()

x, y = images(512)
with torch.no_grad():
    print(f"dense: {(model(x).argmax(1) == y).float().mean():.1%}")

# A plain module says nothing about its input: a probe does, and batches go by the names of the forward's arguments.
calibration = [{"input": images(64)[0]} for _ in range(2)]
fas.convert(model, fas.FAS(timesteps=8, neuron="signed_if"), calibration=calibration, probe={"input": x[:1]})
with torch.no_grad():
    print(f"spiking, T = 8: {(model(x).argmax(1) == y).float().mean():.1%}")
    model.schedule = "online"
    for step, logits in enumerate(model.logits_per_step(input=x), 1):
        print(f"  after step {step}: {(logits.argmax(1) == y).float().mean():.1%}")

"""What a measurement ran on: processor, threads, load, versions, commit."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch


def describe(device: torch.device) -> dict[str, Any]:
    """Return the machine as JSON types; ``load`` is the mean number of runnable processes of the last minute."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "commit": commit(Path(__file__).resolve().parents[1]),
        "load": load(),
    }


def load() -> float | None:
    """Return the load of the machine over the last minute, None where the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def commit(package: Path) -> str | None:
    """Return the commit of the checkout or of the installation, None where neither states one.

    Changes that are not committed do not show.

    Args:
        package: folder of the package; in a checkout it is ``src/fas``.
    """
    git = package.parents[1] / ".git"
    if package.parent.name == "src" and git.is_dir():
        return _head(git)
    try:
        stated = distribution("fas").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    found = json.loads(stated or "{}").get("vcs_info", {}).get("commit_id")
    return None if found is None else str(found)


def _head(git: Path) -> str | None:
    head = (git / "HEAD").read_text(encoding="utf-8").strip()
    if not head.startswith("ref: "):
        return head
    branch = head.removeprefix("ref: ")
    if (git / branch).is_file():
        return (git / branch).read_text(encoding="utf-8").strip()
    packed = git / "packed-refs"
    lines = packed.read_text(encoding="utf-8").splitlines() if packed.is_file() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {branch}")), None)


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    if described.is_file():
        for line in described.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

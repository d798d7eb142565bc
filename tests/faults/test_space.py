"""A disk that is full, or takes nothing: every command that writes says so and leaves what was there."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_ROWS = [{"quantity": "perplexity", "value": 3.0, "unit": "1", "origin": "measured", "conditions": {}}]

Arguments = Callable[[dict[str, Path], Path], list[Any]]
_LITTLE = ["--tokens", 128, "--window", 16]

# What a command is asked for, and what it writes below a place.
COMMANDS: dict[str, tuple[str, Arguments]] = {
    "convert": (
        "model",
        lambda m, out: ["convert", m["dense"], out, "--data", m["text"], *_LITTLE, "--timesteps", 2],
    ),
    "calibrate": ("model", lambda m, out: ["calibrate", m["snn"], out, "--data", m["text"], *_LITTLE]),
    "finetune": (
        "model",
        lambda m, out: [
            "finetune", m["snn"], out, "--data", m["text"], "--max-steps", 1, "--batch-size", 2, "--window", 16,
            "--no-control",
        ],
    ),
    "export nir": ("nir", lambda m, out: ["export", m["snn"], "--to", "nir", "--out", out, "--data", m["text"]]),
    "export fixed-point": (
        "whole.safetensors",
        lambda m, out: ["export", m["snn"], "--to", "fixed-point", "--out", out, "--data", m["text"]],
    ),
    "report": (
        "page.html",
        lambda m, out: [
            "report", m["snn"], "--data", m["text"], "--window", 16, "--out", out, "--test-tokens", 32,
            "--counted-tokens", 32, "--timesteps", "2", "--no-anytime", "--no-coarse",
        ],
    ),
    "compare": (
        "plot.svg",
        lambda m, out: [
            "compare", m["dense"], "--data", m["text"], "--test-data", m["other"], "--timesteps", "2", *_LITTLE,
            "--test-tokens", 64, "--plot", out, "--accounting", "none",
        ],
    ),
}  # fmt: skip


@pytest.fixture(scope="session")
def models(dense: Path, snn: Path, text: Path, folder: Path) -> dict[str, Path]:
    other = folder / "other.txt"
    other.write_text("".join(f"{i} green bottles hang, {i % 5} fall\n" for i in range(40)))
    return {"dense": dense, "snn": snn, "text": text, "other": other}


@pytest.fixture(scope="session")
def earlier(run, models, folder) -> dict[str, Path]:
    """What each command wrote while there was room, by its name; made when it is asked for."""
    made: dict[str, Path] = {}

    class Made(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            place = folder / "earlier" / name.replace(" ", "-") / COMMANDS[name][0]
            place.parent.mkdir(parents=True)
            run(*COMMANDS[name][1](models, place))
            self[name] = place
            return place

    return Made(made)


@pytest.mark.parametrize("name", COMMANDS)
def test_what_was_there_stays_where_a_file_cannot_grow(name, run, models, earlier, limited, contents) -> None:
    place = earlier[name]
    before = contents(place)
    assert before
    again = ["--overwrite"] if name in ("convert", "calibrate") else []
    with limited(700):
        said = run(*COMMANDS[name][1](models, place), *again, code=1).stderr
    assert "exceed the limit of the system (ulimit -f)" in said and "name another directory" in said, said
    assert contents(place) == before
    beside = {path.name for path in place.parent.iterdir()} - {place.name}
    # Only what a second run resumes from, and then the message says so.
    assert beside <= {"model-checkpoints", "model.calibrating"}
    assert ("run the command again to resume" in said) == bool(beside), (said, beside)


@pytest.mark.parametrize("size", ["4k", "12k"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk(name, size, run, models, mounted) -> None:
    disk = mounted(f"size={size}")
    ended = run(*COMMANDS[name][1](models, disk / COMMANDS[name][0]), code=1)
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: ") and ("no space left on the disk for" in last or "free: free some" in last), last
    left = {path.name for path in disk.iterdir()}
    assert left <= {"model-checkpoints", "model.calibrating"}
    assert ("a second run goes on" in last) == bool(left), (last, left)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_is_read_only(name, run, models, mounted) -> None:
    disk = mounted("ro,size=1m")
    said = run(*COMMANDS[name][1](models, disk / COMMANDS[name][0]), code=1).stderr
    assert f"error: {disk}: Read-only file system, nothing was written: name a place that can be written to" in said


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_where_a_directory_should_be(name, run, models, tmp_path, monkeypatch) -> None:
    def late(*arguments: object, **named: object) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr("fas.loading.load", late)
    (tmp_path / "file").write_text("mine")
    said = run(*COMMANDS[name][1](models, tmp_path / "file" / COMMANDS[name][0]), code=1).stderr
    assert f"error: {tmp_path / 'file'}: Not a directory, but a file where a directory should be" in said
    assert (tmp_path / "file").read_text() == "mine" and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_card_stays_where_a_file_cannot_grow(run, snn: Path, tmp_path: Path, limited, contents) -> None:
    import shutil

    from fas.storage.card import write_card
    from fas.types import Measurement

    place = tmp_path / "snn"
    shutil.copytree(snn, place)
    before = contents(place)
    with limited(700), pytest.raises(OSError, match="File too large"):
        write_card(place, [Measurement(**row) for row in _ROWS])
    assert contents(place) == before


def test_streaming_keeps_what_is_finished_and_goes_on(run, models, tmp_path, limited) -> None:
    arguments = [*COMMANDS["convert"][1](models, tmp_path / "snn"), "--stream"]
    with limited(12_000):
        said = run(*arguments, code=1).stderr
    assert "exceed the limit" in said and "run the command again to resume" in said
    assert not (tmp_path / "snn").exists() and (tmp_path / "snn.partial").is_dir()
    run(*arguments)
    run(*COMMANDS["convert"][1](models, tmp_path / "whole"))
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".partial")] == []
    assert (tmp_path / "snn" / "config.json").is_file()


def test_standard_output_on_a_full_disk() -> None:
    # /dev/full takes nothing. A process of its own: what Python still holds is written when it ends.
    program = "from fas.cli.main import main; main(['inspect', 'embedded', '--json'])"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: no space left on the disk: free some")
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_every_kind_of_full_disk_is_known() -> None:
    from fas.cli.program.failures import message

    place = Path("/data/out")
    for number in (errno.ENOSPC, errno.EDQUOT):
        assert message(OSError(number, "full"), place).startswith("no space left on the disk for /data/out")
    # What torch.save raises when the disk is full.
    assert "no space" in message(
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), place
    )
    assert message(PermissionError(errno.EACCES, "Permission denied", "/x"), place) == (
        "/x: Permission denied: take the rights to it, or name another place"
    )


def test_a_model_that_is_larger_than_the_disk_is_refused_before_the_work(run, models, tmp_path, monkeypatch) -> None:
    from collections import namedtuple

    def late(*arguments: object, **named: object) -> None:
        raise AssertionError("the work began")

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda place: usage(2**20, 2**20 - 2048, 2048))
    monkeypatch.setattr("fas.conversion.convert", late)
    said = run(*COMMANDS["convert"][1](models, tmp_path / "snn"), code=1).stderr
    assert "KiB and more, and its disk has 2.0 KiB free: free some, or name another directory" in said

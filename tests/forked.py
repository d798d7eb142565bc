"""Programs in processes of their own, forked from a server that has imported what takes seconds to import."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["transformers", "tiny_models", "fas.conversion", "fas.stages.calibrate"])
# Seconds that nothing here takes, not even on a busy machine.
_LIMIT = 300


def ensure_server():
    """Start the server, unless it runs already."""
    # Python 3.11 does not tell it where the modules lie that it imports beforehand.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        os.environ.update({} if before is None else {"PYTHONPATH": before})


def run(program, *arguments, cwd=None, **environment):
    """Run a file of Python, or its text, to the end, as ``python FILE ARGUMENTS`` would.

    Returns:
        What ``subprocess.run`` returns, output and errors as text.
    """
    ensure_server()
    with tempfile.TemporaryDirectory() as place:
        if isinstance(program, str):
            (Path(place) / "program.py").write_text(program)
            program = Path(place) / "program.py"
        told = [Path(place) / "stdout", Path(place) / "stderr"]
        command = [str(program), *map(str, arguments)]
        child = CONTEXT.Process(target=_run, args=(command, told, str(cwd or os.getcwd()), environment))
        child.start()
        child.join(_LIMIT)
        if child.exitcode is None:
            child.kill()
            raise TimeoutError(f"{program} has not ended after {_LIMIT} s")
        return subprocess.CompletedProcess(command, child.exitcode, *(file.read_text() for file in told))


def _run(command, told, cwd, environment):
    for number, file in enumerate(told, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.update({name: str(value) for name, value in environment.items()})
    os.chdir(cwd)
    import torch

    torch.set_num_threads(1)
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    runpy.run_path(command[0], run_name="__main__")

"""Several processes for one test, forked from a server that has imported the library, joined over gloo."""

import contextlib
import multiprocessing
import os
import socket
import time
from multiprocessing.connection import wait

from forked import ensure_server

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tasks"])
# Seconds that nothing here takes, not even on a busy machine.
_LIMIT = 120


def crew(size, task, *arguments, **environment):
    """Run a task in each of several processes; one alone is not joined to anything.

    Returns:
        What each has returned, or the exception that it has ended with; None where it was killed.
    """
    ensure_server()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes, members = [], []
    for rank in range(size):
        here, there = _CONTEXT.Pipe()
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        place = {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if size > 1 else {}
        member = _CONTEXT.Process(target=_work, args=(there, {**place, **environment}, task, arguments))
        member.start()
        there.close()
        pipes.append(here)
        members.append(member)
    answers = [None] * size
    waiting, end = dict(zip(pipes, range(size), strict=True)), time.monotonic() + _LIMIT
    while waiting:
        ready = wait(list(waiting), timeout=max(0, end - time.monotonic()))
        if not ready:
            for member in members:
                member.kill()
            raise TimeoutError(f"processes {sorted(waiting.values())} have not ended after {_LIMIT} s")
        for pipe in ready:
            try:
                answers[waiting[pipe]] = pipe.recv()
            except EOFError:
                pass
            del waiting[pipe]
    for pipe in pipes:
        pipe.close()
    for member in members:
        member.join()
    return answers


def agreed(answers):
    """Return what all processes have returned, which must be the same."""
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    assert all(answer == answers[0] for answer in answers)
    return answers[0]


def _work(pipe, environment, task, arguments):
    os.environ.update({name: str(value) for name, value in environment.items()})
    import torch

    torch.set_num_threads(1)
    try:
        pipe.send(task(*arguments))
    except Exception as error:
        # Under a name that the other side can read: errors of torch cannot all be sent.
        pipe.send(error if type(error).__module__.startswith(("fas", "builtins")) else RuntimeError(repr(error)))
        return
    # The first process keeps the store in which the others find each other: nobody leaves before the last has arrived.
    with contextlib.suppress(EOFError):
        pipe.recv()

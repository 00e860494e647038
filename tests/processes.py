"""Processes that come to a sudden end, processes that begin without importing the libraries again, their ports, and
a disk that is full."""

import contextlib
import importlib
import multiprocessing
import os
import random
import resource
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Of the libraries alone: what is tested is imported by each process itself. Imports take eight seconds, a fork none.
START_METHOD = "forkserver"
_FORKS = multiprocessing.get_context(START_METHOD)
_FORKS.set_forkserver_preload(
    [
        *("torch", "torch.distributed", "transformers", "transformers.trainer", "datasets", "accelerate", "peft"),
        *("diffusers.training_utils", "diffusers.models.transformers.transformer_sd3"),
        "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3",
    ]
)


def _run(module: str, arguments: list[str], environment: dict[str, str], path: list[str], output) -> None:
    # A daemon ends with its parent, but must not have children.
    multiprocessing.current_process().daemon = False
    # Inherited otherwise, unlike in a process that a user starts.
    multiprocessing.set_start_method("fork", force=True)
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    os.environ.update(environment)
    _read_hub_variables()
    import torch

    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", 1)))
    sys.path[:], sys.argv = path, [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _read_hub_variables() -> None:
    """Again, as if the libraries were imported now."""
    import huggingface_hub
    import transformers.utils.hub

    importlib.reload(huggingface_hub.constants)
    # Two clients are made once: the one behind the library's plain functions, and transformers' own.
    for client in (huggingface_hub.hf_api.api, transformers.utils.hub.hf_api()):
        client.endpoint = huggingface_hub.constants.ENDPOINT


class Worker:
    """
    `python -m module arguments` in a process forked from one that has the libraries, with what tests use of
    `subprocess.Popen`. `stdout` has what it prints, errors included.

    Variables that libraries read when they are imported cannot be in `environment`, but for those of huggingface_hub.
    """

    def __init__(self, module: str, *arguments, environment: dict[str, str]) -> None:
        reader, writer = _FORKS.Pipe(duplex=False)
        command = module, [*map(str, arguments)], environment, sys.path, writer
        self._process = _FORKS.Process(target=_run, args=command, daemon=True)
        self._process.start()
        writer.close()
        self.stdout = os.fdopen(os.dup(reader.fileno()), "r")
        reader.close()

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """As `returncode`."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """To a process that may have ended."""
        if self.poll() is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = 600) -> int:
        """What it ended with."""
        self._process.join(timeout)
        assert self.returncode is not None, "it has not ended"
        return self.returncode

    def communicate(self, timeout: float = 600) -> tuple[str, None]:
        """What else it printed, once it has ended."""
        printed = self.stdout.read()
        self.wait(timeout)
        return printed, None


def run_code(code: str, *arguments, folder: Path, environment: dict[str, str] | None = None) -> list[str]:
    """The lines that `python -c code arguments` prints in `folder`, in a `Worker`. Its failure is the test's."""
    worker = Worker("tests.run_code", folder, code, *arguments, environment=environment or {})
    printed, _ = worker.communicate()
    assert worker.returncode == 0, printed
    return printed.splitlines()


def unused_port() -> int:
    """A port of this machine that nothing listened on a moment ago. The system gives none of this range by itself."""
    while True:
        port = random.Random(os.urandom(8)).randrange(20_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def file_size_limit(size: int):
    """Context in which no file of this process becomes larger than `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def two_ranks() -> list[dict[str, str]]:
    """Environment variables of two processes of one run, as `torchrun --nproc_per_node 2` gives them."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(unused_port())}
    sizes = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return [{**meeting, **sizes, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]


def kill_after(process: Worker | subprocess.Popen, condition: Callable[[], bool]) -> None:
    """Kills a process once a condition holds, which is to be before it ends."""
    deadline = time.monotonic() + 600  # a machine may be busy
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def kill_after_lines(process: Worker | subprocess.Popen, journal: Path, lines: int) -> bytes:
    """Waits until a process's journal has more than `lines` lines, kills it, and returns what the journal holds."""
    kill_after(process, lambda: journal.exists() and journal.read_bytes().count(b"\n") > lines)
    return journal.read_bytes()

"""Processes that come to a sudden end."""

import signal
import subprocess
import time
from pathlib import Path


def kill_after_lines(command: list[str], journal: Path, lines: int) -> bytes:
    """Runs a command until its journal has more than `lines` lines, kills it, and returns what the journal holds."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600  # a machine may be busy
    while not (journal.exists() and journal.read_bytes().count(b"\n") > lines):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return journal.read_bytes()

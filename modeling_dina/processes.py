"""Worker processes."""

import os
from multiprocessing import connection, parent_process
from threading import Thread


def end_with_parent() -> None:
    """End this worker process as soon as its parent is gone. A worker of a killed parent would wait for ever."""
    Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)

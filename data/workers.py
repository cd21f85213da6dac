"""Work on many files by several processes."""

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from errors import LostProcess

CHUNK = 64  # items that a process takes at a time, at most


def map_in_processes(
    function: Callable[[Any], Any], items: Sequence, workers: int, work: str, title: str, chunk: int = CHUNK
) -> list:
    """[function(item), ...] with a progress bar.

    function  must not use torch where workers are forked, whose threads do not survive that. An exception that it
              returns is raised here, without another process's traceback.
    workers   processes; 0: this one
    work      what they do, for the error
    title     of the progress bar
    raises    LostProcess, a ChildProcessError, where one of them dies
    """
    pool = ProcessPoolExecutor(workers, initializer=leave_interrupts_to_the_main_process) if workers else None
    found = []
    try:
        results = pool.map(function, items, chunksize=chunk) if pool else map(function, items)
        for result in tqdm(results, title, len(items), leave=False, dynamic_ncols=True, disable=None):
            if isinstance(result, Exception):
                raise result
            found.append(result)
    except BrokenProcessPool as error:
        raise LostProcess(
            f"a process of the {work} died; most often memory ran out: lower --workers, or 0 for one process"
        ) from error
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    return found


def leave_interrupts_to_the_main_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)

"""How a script ends: what a user can cause or mend in one line, a mistake in the code in a traceback."""

import os
import sys
from collections.abc import Callable
from typing import Any

from engine.loader import dead_worker_explained
from engine.processes import error_line, leave_processes, lost_neighbour_explained
from errors import message_of


def run_script(main: Callable[[], Any]) -> None:
    """Run a script's main; what a user can cause or mend ends in one line, see errors.py, all else in a traceback.

    A reader of the output that leaves, as head does, ends the script quietly with status 141, as a pipe's signal would.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # of names that the terminal cannot show
    try:
        try:
            with dead_worker_explained(), lost_neighbour_explained():
                main()
            leave_processes()
        except KeyboardInterrupt:
            print("\nstopped")
            sys.exit(130)
        finally:
            sys.stdout.flush()
    except Exception as error:
        if any(isinstance(each, BrokenPipeError) for each in (error, error.__cause__)) and output_is_gone():
            sys.exit(141)
        message = message_of(error)
        if message is None:
            raise
        sys.exit(error_line(message))


def output_is_gone() -> bool:
    """Whether nobody reads what is printed; the rest of it then goes nowhere, or Python would fail on it at its end."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False

"""One run at a time in a folder: who writes there holds its lock, which the system gives up when the process ends."""

import contextlib
import errno
import json
import os
import platform
import time
from pathlib import Path
from types import TracebackType

from errors import FileInTheWay

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = "lock"  # of the file; it stays in the folder, empty once its run has ended in order
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # what file systems without locks say


class FolderLock:
    """Held from its making until release(), or until the process ends in any way, killed or not.

    The lock is the system's (POSIX), which network file systems share between machines, and which loader processes
    do not inherit. Where a file system has none, the file's content decides: an owner on this machine that has ended
    is passed over, one on another machine is believed to run.

    folder   where it lies; must exist
    command  of the run, for whom it refuses
    raises   FileInTheWay, which names the owner, where another process holds it
    """

    def __init__(self, folder: Path, command: str):
        path = folder / NAME
        self.file = open(path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115
        sure, taken = fcntl is not None, False
        try:
            if sure:
                fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            sure = taken = error.errno not in NO_LOCKS
        taken = taken or (not sure and seems_to_run(self.owner()))
        if taken:
            owner = self.owner()
            self.file.close()
            named = "another process"
            if owner:
                named = (
                    f"process {owner['process']} on {owner['host']}, since {owner['since']}, with: {owner['command']}"
                )
            way_out = "" if sure else f", or remove {path} if that process has ended"
            raise FileInTheWay(
                f"{folder} is in use by {named}; wait until it ends, end it, or choose another --exp_name{way_out}"
            )
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        self.write(json.dumps({"host": platform.node(), "process": os.getpid(), "since": now, "command": command}))

    def owner(self) -> dict | None:
        """What the file says; None where it is empty or damaged, as by a full disk."""
        self.file.seek(0)
        try:
            owner = json.loads(self.file.read())
        except ValueError:
            return None
        return owner if isinstance(owner, dict) and {"host", "process", "since", "command"} <= owner.keys() else None

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the lock holds without it
            self.file.truncate(0)
            self.file.write(text)
            self.file.flush()

    def release(self) -> None:
        self.write("")
        with contextlib.suppress(OSError):
            self.file.close()

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def seems_to_run(owner: dict | None) -> bool:
    if owner is None:
        return False
    if owner["host"] != platform.node():
        return True
    try:
        os.kill(int(owner["process"]), 0)
    except (ProcessLookupError, ValueError, TypeError):
        return False
    except OSError:  # another user's
        return True
    return int(owner["process"]) != os.getpid()

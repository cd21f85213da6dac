"""What a user can cause or mend: an error that is shown as one line, where a mistake in the code keeps its traceback.

Each class is the built-in error of its kind, too, so that whoever calls the code catches what Python programs catch.
Raise one of them with the thing, its value and the way out, in one line.
"""

import errno


class UserError(Exception):
    """What all of them are; never raised itself."""

    def __str__(self) -> str:
        return getattr(self, "strerror", None) or super().__str__()  # without the number in front, "[Errno 28]"


class WrongInput(UserError, ValueError):
    """A flag, number or content of a file that cannot be used."""


class MissingFile(UserError, FileNotFoundError):
    """A file or folder that is not there."""


class FileInTheWay(UserError, FileExistsError):
    """A file or folder that would be overwritten."""


class UnusableFile(UserError, OSError):
    """A file or folder that cannot be read or written; may carry the system's number first, as OSError does."""


class NotFinite(UserError, FloatingPointError):
    """A loss, score or gradient that is no finite number."""


class OutOfMemory(UserError, MemoryError):
    """Memory of the machine, of a GPU or of what processes share that does not suffice."""


class LostProcess(UserError, ChildProcessError):
    """Another process that died, or cannot be reached."""


OF_A_PLACE = {  # what the system says of a file or folder, and the way out
    errno.EACCES: "change its rights, or choose another",
    errno.EPERM: "change its rights, or choose another",
    errno.ENOENT: "give one that is there",
    errno.EEXIST: "choose another, or take it away",
    errno.ENOTDIR: "it lies below a file; choose a place below folders",
    errno.EISDIR: "it is a folder; give a file",
    errno.ELOOP: "its links lead in a circle; give the place itself",
    errno.ENAMETOOLONG: "choose a shorter name",
}
OF_THE_MACHINE = {  # what it says of the whole machine, with or without a file
    errno.EROFS: "choose a place that can be written",
    errno.ENOSPC: "make room, or choose another place",
    errno.EDQUOT: "make room, or choose another place",
    errno.EFBIG: "files may not be so large here; choose another place",
    errno.EIO: "the disk or the connection to it fails; choose another place",
    errno.EMFILE: "lower --workers, or allow more open files with ulimit -n",
    errno.ENFILE: "lower --workers, or allow more open files",
    errno.ENOMEM: "lower --workers, or end other programs",
}


def message_of(error: BaseException) -> str | None:
    """The line to show for an error; None for a mistake in the code, whose traceback is what helps.

    Shown are this project's own errors, and what the system says of a file, such as one without rights, or of the
    machine, such as a full disk. Where the code lies that raised them does not matter.
    """
    if isinstance(error, UserError):
        return one_line(str(error))
    if isinstance(error, OSError) and (error.filename is not None or error.errno in OF_THE_MACHINE):
        named = f"{error.filename}: " if error.filename is not None else ""
        return one_line(f"{named}{reason_of(error)}")
    return None


def reason_of(error: OSError) -> str:
    """What the system says, and the way out of it."""
    reason = error.strerror or type(error).__name__
    way_out = (OF_A_PLACE | OF_THE_MACHINE).get(error.errno or 0)
    return f"{reason}; {way_out}" if way_out else reason


def one_line(text: str) -> str:
    """Line breaks become spaces, and what cannot be shown, as in file names of another encoding, its escape."""
    joined = " ".join(part.strip() for part in text.splitlines())
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in joined)

"""The start of a process on its device, the device's name, and the memory that is taken of it."""

import platform
import sys

import torch

from engine.processes import check_launcher, join_processes, world_size
from errors import WrongInput


def start_process(name: str | None, several_processes: bool = False) -> torch.device:
    """This process's device: the named one, else a GPU if there is one, else the CPU. A GPU becomes the current one.

    several_processes  whether torchrun may start the script; the process then joins the others here, ends with them,
                       and prints nothing unless it is process 0

    Raises WrongInput for a device that is not there, and for several processes where there may be but one.
    """
    check_launcher()
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if world_size() > 1 and not several_processes:
        raise WrongInput(f"this script was started as {world_size()} processes and runs as one: start it with python")
    try:
        device = join_processes(torch.device(name))
        if device.type not in ("cpu", "cuda"):
            raise WrongInput(f"--device {name}: cpu and cuda are what this runs on")
        if device.type == "cuda":
            # "cuda" alone names no GPU, and torch.cuda refuses it. What asks for no device gets the current one.
            device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
            torch.cuda.set_device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise WrongInput(f"--device {name} cannot be used here: {error}") from error
    return device


def device_name(device: torch.device) -> str:
    """Such as "cuda:0 (NVIDIA H100 80GB HBM3)" or "cpu (x86_64)"."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{device} ({kind})"


def peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU the most that tensors took since the last reset, else the most that this process ever took.

    0 where the system does not say, as on Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

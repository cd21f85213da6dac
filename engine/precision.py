"""What networks compute in, and how their tensors lie in memory."""

from typing import NamedTuple

import torch

from errors import WrongInput

PRECISIONS = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Precision(NamedTuple):
    """The precision of a run; `choose_precision` makes one.

    name           float32 (on a GPU true float32, 24 bits of a factor), tf32 (a GPU's convolutions and matrix products
                   take 11 bits of a float32 factor and add up in float32), bfloat16 or float16 (autocast)
    dtype          of autocast; torch.float32 where there is none
    memory_format  of images and networks: channels_last, the faster order for convolutions, but for true float32 on a
                   GPU, where cuDNN has only slow kernels for it (9 to 50 times slower for dilated convolutions)
    """

    name: str
    dtype: torch.dtype
    memory_format: torch.memory_format

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, self.dtype, enabled=self.dtype is not torch.float32)


FLOAT32 = Precision("float32", torch.float32, torch.channels_last)  # of a CPU


def choose_precision(name: str | None, device: torch.device) -> Precision:
    """The named precision, else tf32 on a GPU and float32 on a CPU; sets TF32 on a GPU on or off for this process.

    The released code computes in tf32 as far as convolutions go: PyTorch's default leaves it on for them.
    Raises ValueError for tf32 on another device than a GPU.
    """
    name = name or ("tf32" if device.type == "cuda" else "float32")
    if device.type != "cuda":
        if name == "tf32":
            raise WrongInput(f"--precision tf32 is one of GPUs, and this run is on {device}: take float32")
        return Precision(name, PRECISIONS[name], torch.channels_last)
    true_float32 = name == "float32"
    # One of the two interfaces alone: PyTorch raises where allow_tf32 is mixed with it.
    torch.backends.cuda.matmul.fp32_precision = "ieee" if true_float32 else "tf32"
    torch.backends.cudnn.conv.fp32_precision = "ieee" if true_float32 else "tf32"  # type: ignore[attr-defined]
    return Precision(name, PRECISIONS[name], torch.contiguous_format if true_float32 else torch.channels_last)

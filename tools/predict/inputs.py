"""What is predicted on: pictures below a folder, by name, and how they are read."""

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.decoding import MAX_PIXELS
from data.files import read_photograph
from data.images import ENDINGS
from data.listing import files_below, say_left_out, why_no_file
from errors import MissingFile, WrongInput
from tools.predict.folder import REPORT, SETTINGS


def list_inputs(source: Path, folder: Path) -> dict[str, Path]:
    """{name relative to the input: path}, sorted, without what lies in the output folder.

    Folders are listed as data/listing.py has it. Raises OSError for a folder that cannot be read.
    """
    if source.is_file():
        return {source.name: source}
    kind = why_no_file(source)
    if kind not in (None, "a folder"):
        raise WrongInput(f"--input {source} is {kind}; give an image, a folder of images or a video")
    if not source.is_dir():
        raise MissingFile(f"no file or folder {source}; --input is an image, a folder of images or a video")
    inside, output = source.resolve(), folder.resolve()
    if inside == output:
        raise WrongInput(
            f"--folder {folder} is the folder of the input; choose another, such as {folder / 'predicted'}"
        )
    listing = files_below(source, ENDINGS)
    say_left_out(source, listing.left_out())
    paths = sorted([*listing.files, *listing.no_files])  # of which the latter fail by themselves
    results = {place for place in {path.parent for path in paths} if place.resolve().is_relative_to(output)}
    inputs = {path.relative_to(source).as_posix(): path for path in paths if path.parent not in results}
    places = {place for path in inputs.values() for place in path.relative_to(source).parents if place.name}
    earlier = [
        place for place in sorted(places) if all((source / place / name).is_file() for name in (SETTINGS, REPORT))
    ]
    for place in earlier:
        print(f"{source / place} holds results of tools.predict, which are left out")
        inputs = {name: path for name, path in inputs.items() if place not in path.relative_to(source).parents}
    if not inputs:
        raise MissingFile(f"no image ({', '.join(ENDINGS)}) below {source}; videos are given one by one")
    return inputs


class Photographs(Dataset):
    """Samples (image uint8 (3, H, W), index, ""); of a file that cannot be read (nothing, index, the reason)."""

    def __init__(self, paths: list[Path], max_pixels: int = MAX_PIXELS):
        self.paths, self.max_pixels = paths, max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        path = self.paths[index]
        try:
            return read_photograph(path, True, self.max_pixels), index, ""
        except (OSError, ValueError, MemoryError) as error:  # the others must be done
            return torch.empty(3, 0, 0, dtype=torch.uint8), index, str(error).removeprefix(f"{path} ")

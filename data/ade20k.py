"""ADE20K (ADEChallengeData2016): photographs with label maps of ids 0..150, a source of negatives."""

from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from data.files import check_same_size, label_table, pair_files, read_image, read_labels


class ADE20K(Dataset):
    """Samples (image uint8 (3, H, W), ids uint8 (H, W) of 0..150, name); 0 is unlabeled, an id like any other here."""

    mean_colour = (107, 117, 120)  # 0..255
    table = label_table({label: label for label in range(151)})

    def __init__(self, root: str | Path, split: str = "training"):
        self.root = Path(root)
        self.pairs = pair_files(
            self.root / "images" / split,
            self.root / "annotations" / split,
            hint="--neg_dataroot is the folder ADEChallengeData2016, which holds images/ and annotations/",
            image_pattern="*.jpg",
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str]:
        image_path, label_path = self.pairs[index]
        image = read_image(image_path, modes=("RGB", "L"))  # a few of its photographs are black and white
        labels = read_labels(label_path, self.table)
        check_same_size(image, labels, image_path, label_path)
        return image, labels, str(image_path.relative_to(self.root))

"""The numbers of the papers' trainings; recipes.yaml says what each is. What one script alone has, it adds."""

from dataclasses import dataclass

from engine.recipe import Recipe, require, require_positive, require_range


@dataclass(frozen=True, kw_only=True)
class HybridRecipe(Recipe):
    """The numbers of any fine-tuning with negatives."""

    adam_eps: float
    beta: float
    ignored_are_inliers: bool
    likelihood_margin: float | None

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "adam_eps")
        require(self.beta >= 0, f"beta must not be negative: {self.beta}")


@dataclass(frozen=True, kw_only=True)
class RealNegativesRecipe(HybridRecipe):
    """The numbers of a fine-tuning with patches of other photographs."""

    negative_resize: int
    negative_scale: tuple[float, float]
    negative_size: int
    negative_antialias: bool

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "negative_resize", "negative_size")
        require_range("negative_scale", self.negative_scale)
        require(
            self.negative_size <= self.crop_size,
            f"negative_size {self.negative_size} is larger than crop_size {self.crop_size}: "
            "a negative patch must fit into the training crop",
        )


@dataclass(frozen=True, kw_only=True)
class FlowRecipe(HybridRecipe):
    """The numbers of a fine-tuning with patches drawn from a flow that is trained with the network."""

    patch_sides: tuple[int, int, int]
    flow_lr_pretrained: float
    flow_lr_scratch: float
    flow_lr_decay: float
    flow_eps: float
    divergence_weight: float
    bits_weight: float
    flow_checkpointing: bool
    validation_patches: int

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "flow_lr_pretrained", "flow_lr_scratch", "flow_eps", "validation_patches")
        require(0 < self.flow_lr_decay <= 1, f"flow_lr_decay {self.flow_lr_decay} must lie over 0 and at most at 1")
        for key in ("divergence_weight", "bits_weight"):
            require(getattr(self, key) >= 0, f"{key} must not be negative: {getattr(self, key)}")
        smallest, largest, side_step = self.patch_sides
        require(
            0 < smallest <= largest
            and side_step > 0
            and not any(side % 8 for side in self.patch_sides)
            and (largest - smallest) % side_step == 0,
            f"patch_sides {list(self.patch_sides)} must be smallest, largest and step in pixels, all multiples of 8, "
            "and whole steps from the smallest to the largest",
        )
        require(
            largest <= self.crop_size,
            f"patch_sides up to {largest} are larger than crop_size {self.crop_size}: a negative patch must fit into "
            "the training crop; raise crop_size, or lower them, as with --patch_sides 16 32 8",
        )


@dataclass(frozen=True, kw_only=True)
class LadderRecipe(Recipe):
    """The numbers of any training of LDN-121."""

    adam_eps: float
    backbone_lr_factor: float

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "adam_eps")
        require(
            0 < self.backbone_lr_factor <= 1, f"backbone_lr_factor {self.backbone_lr_factor} must be over 0, at most 1"
        )


@dataclass(frozen=True, kw_only=True)
class SegmenterRecipe(Recipe):
    """The numbers of any training of Segmenter."""

    heads: int
    window: int
    window_stride: int

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "heads", "window", "window_stride")

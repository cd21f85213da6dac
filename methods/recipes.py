"""The numbers of the papers' trainings, each with what it means. What one script alone has, it adds."""

from dataclasses import dataclass
from typing import Annotated

from engine.recipe import Recipe, require, require_positive, require_range

AdamEps = Annotated[float, "epsilon of the network's Adam"]


@dataclass(frozen=True, kw_only=True)
class HybridRecipe(Recipe):
    """The numbers of any fine-tuning with negatives."""

    adam_eps: AdamEps
    beta: Annotated[float, "weight of the likelihood term; the dataset term has 10 beta"]
    ignored_are_inliers: Annotated[bool, "IGNORE pixels are inliers in the dataset term, as in the release on streets"]
    likelihood_margin: Annotated[
        float | None, "nats down to which a negative's ln p^(x) is lowered; null: without limit"
    ]

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "adam_eps")
        require(self.beta >= 0, f"beta must not be negative: {self.beta}")


@dataclass(frozen=True, kw_only=True)
class RealNegativesRecipe(HybridRecipe):
    """The numbers of a fine-tuning with patches of other photographs."""

    negative_resize: Annotated[int, "short side of a negative's picture, pixels, before negative_scale"]
    negative_scale: Annotated[tuple[float, float], "range of a random factor on negative_resize"]
    negative_size: Annotated[int, "side of the patch that is cut from it, pixels"]
    negative_antialias: Annotated[bool, "smooth a negative's picture before it is shrunk; the release does not"]

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "negative_resize", "negative_size")
        require_range("negative_scale", self.negative_scale)
        require(
            self.negative_size <= self.crop_size,
            f"negative_size {self.negative_size} is larger than crop_size {self.crop_size}: "
            "a negative patch must fit into the training crop; lower it, and negative_resize with it",
        )


@dataclass(frozen=True, kw_only=True)
class FlowRecipe(HybridRecipe):
    """The numbers of a fine-tuning with patches drawn from a flow that is trained with the network."""

    patch_sides: Annotated[tuple[int, int, int], "smallest, largest and step of the sides of the patches, pixels"]
    flow_lr_pretrained: Annotated[float, "the flow's learning rate with a file in --flow_state"]
    flow_lr_scratch: Annotated[float, "the flow's learning rate without one"]
    flow_lr_decay: Annotated[float, "factor on the flow's learning rate after each epoch"]
    flow_eps: Annotated[float, "epsilon of the flow's Adamax"]
    divergence_weight: Annotated[
        float, "weight of the Jensen-Shannon divergence to uniform of the class posterior on the flow's patches"
    ]
    bits_weight: Annotated[float, "weight of the bits per dimension of what the patches cover"]
    validation_patches: Annotated[int, "sampled before the training, and pasted into the validation frames"]

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

    adam_eps: AdamEps
    backbone_lr_factor: Annotated[float, "the pretrained backbone learns at this share of lr"]

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "adam_eps")
        require(
            0 < self.backbone_lr_factor <= 1, f"backbone_lr_factor {self.backbone_lr_factor} must be over 0, at most 1"
        )


@dataclass(frozen=True, kw_only=True)
class SegmenterRecipe(Recipe):
    """The numbers of any training of Segmenter."""

    heads: Annotated[int, "attention heads of the encoder; a ViT-B of ImageNet has 12, the released weights 16"]
    window: Annotated[int, "side of the windows that validation slides over an image, pixels"]
    window_stride: Annotated[int, "pixels between the windows"]

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "heads", "window", "window_stride")

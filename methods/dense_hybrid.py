"""The steps of the closed-set trainings and of DenseHybrid's fine-tunings, and their validations (ECCV 2022)."""

from collections.abc import Callable

from torch import Tensor, nn

from data.files import LabelledImages
from engine import Run, Step, anomaly_figures, closed_set_figures
from engine.loader import Samples
from losses import closed_set_loss, dense_hybrid_loss, hybrid_score, pixel_counts
from methods.recipes import HybridRecipe

Validation = Callable[[nn.Module], dict[str, float]]


def closed_set_step() -> Step:
    """Cross-entropy over the pixels of known classes, of a network that returns class logits."""

    def loss(model: nn.Module, images: Tensor, labels: Tensor, counts: dict) -> dict[str, Tensor]:
        return closed_set_loss(model(images), labels, counts)

    def counts(_images: Tensor, labels: Tensor) -> dict:
        return pixel_counts(labels)

    return Step(loss, counts=counts, fixed=True)


def hybrid_step(recipe: HybridRecipe, paste: Callable[..., tuple[Tensor, Tensor]]) -> Step:
    """The DenseHybrid loss of a hybrid network, on images with negatives in them.

    paste  (images (B, 3, H, W) in 0..1, labels (B, H, W), what else is in a batch) -> images and labels with negatives,
           whose pixels are labelled OUTLIER
    """
    ignored_are_inliers = recipe.ignored_are_inliers  # the loss and the divisors of its terms must agree on it

    def loss(model: nn.Module, images: Tensor, labels: Tensor, counts: dict) -> dict[str, Tensor]:
        class_logits, dataset_logits = model(images)
        return dense_hybrid_loss(
            class_logits,
            dataset_logits,
            labels,
            beta=recipe.beta,
            counts=counts,
            ignored_are_inliers=ignored_are_inliers,
            likelihood_margin=recipe.likelihood_margin,
        )

    def counts(_images: Tensor, labels: Tensor) -> dict:
        return pixel_counts(labels, ignored_are_inliers)

    return Step(loss, paste, counts, fixed=True)


def closed_set_validation(val_set: LabelledImages, run: Run, windows: nn.Module | None = None) -> Validation:
    """{"mIoU"} of the known classes.

    windows  the network to evaluate where it is not the model itself but, say, the model over sliding windows
    """

    def validate(model: nn.Module) -> dict[str, float]:
        return closed_set_figures(windows or model, val_set, val_set.num_classes, run)

    return validate


def hybrid_validation(
    val_set: LabelledImages, pasted_val_set: Samples, run: Run, windows: nn.Module | None = None
) -> Validation:
    """{"AP", "FPR95"} of the hybrid score on images with negatives in them, {"mIoU"} on images without.

    windows  as in closed_set_validation
    """

    def validate(model: nn.Module) -> dict[str, float]:
        figures = anomaly_figures(windows or model, pasted_val_set, hybrid_score, run)
        return figures | closed_set_figures(windows or model, val_set, val_set.num_classes, run)

    return validate

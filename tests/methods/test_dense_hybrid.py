"""The step and the validation of closed-set trainings and of fine-tunings with negatives."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch import nn

from engine import Run
from labels import IGNORE, OUTLIER
from methods import closed_set_step, closed_set_validation, hybrid_step, hybrid_validation
from tests.support.tiny import whole

CPU = torch.device("cpu")
BETA = 0.3


class TwoHeads(nn.Module):
    """Logits of three classes, and of inlier and outlier, that are linear in a pixel's colour"""

    def __init__(self, hybrid=True):
        super().__init__()
        torch.manual_seed(4)
        self.classes, self.dataset, self.hybrid = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1), hybrid

    def forward(self, images):
        return (self.classes(images), self.dataset(images)) if self.hybrid else self.classes(images)


def recipe(ignored_are_inliers=False, likelihood_margin=None):
    return SimpleNamespace(beta=BETA, ignored_are_inliers=ignored_are_inliers, likelihood_margin=likelihood_margin)


def mark_first_row(images, labels, negatives):
    """In the place of a paste"""
    images, labels = images.clone(), labels.clone()
    images[:, :, 0], labels[:, 0] = negatives, OUTLIER
    return images, labels


def a_batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 3, 5, generator=generator)
    labels = torch.randint(3, (4, 3, 5), generator=generator)
    labels[:3, 2, 2:], labels[3, 1] = IGNORE, IGNORE
    return images, labels, torch.rand(4, 3, 5, generator=generator)


def pixels(maps, where):
    """The logits of the pixels of a mask, as lists"""
    return maps.detach().permute(0, 2, 3, 1)[where].tolist()


def log_sum_exp(logits):
    return math.log(sum(map(math.exp, logits)))


@pytest.mark.parametrize("margin", [None, 1.15])
@pytest.mark.parametrize("ignored_are_inliers", [False, True])
def test_each_term_is_a_mean_over_the_pixels_that_it_is_a_sum_over(ignored_are_inliers, margin):
    network, (images, labels, negatives) = TwoHeads(), a_batch()
    terms = whole(hybrid_step(recipe(ignored_are_inliers, margin), mark_first_row))(network, images, labels, negatives)
    images, labels = mark_first_row(images, labels, negatives)
    class_logits, dataset_logits = network(images)
    outlier, known = labels == OUTLIER, labels < 3
    inlier = labels != OUTLIER if ignored_are_inliers else known

    right = [
        log_sum_exp(pixel) - pixel[label]
        for pixel, label in zip(pixels(class_logits, known), labels[known].tolist(), strict=True)
    ]
    densities = [max(log_sum_exp(pixel), margin or -math.inf) for pixel in pixels(class_logits, outlier)]
    dataset = [log_sum_exp(pixel) - pixel[0] for pixel in pixels(dataset_logits, inlier)]
    dataset += [log_sum_exp(pixel) - pixel[1] for pixel in pixels(dataset_logits, outlier)]
    expected = {"class": right, "likelihood": densities, "dataset": dataset}
    weights = {"class": 1, "likelihood": BETA, "dataset": 10 * BETA}
    assert terms.keys() == expected.keys()
    for name, values in expected.items():
        assert terms[name].item() == pytest.approx(weights[name] * sum(values) / len(values), rel=1e-5), name
    assert margin is None or 0 < sum(density == margin for density in densities) < len(densities)


@pytest.mark.parametrize("ignored_are_inliers", [False, True])
def test_parts_of_a_batch_add_up_to_the_loss_of_the_whole(ignored_are_inliers):
    network, batch = TwoHeads(), a_batch()
    step = hybrid_step(recipe(ignored_are_inliers), mark_first_row)
    images, labels = step.prepare(*batch)
    assert images.equal(mark_first_row(*batch)[0]) and labels.equal(mark_first_row(*batch)[1])
    counts = [step.counts(images[part], labels[part]) for part in (slice(0, 1), slice(1, 4))]
    total = {name: counts[0][name] + counts[1][name] for name in counts[0]}
    parts = [step.loss(network, images[part], labels[part], total) for part in (slice(0, 1), slice(1, 4))]
    for name, term in whole(step)(network, *batch).items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], term)


def test_the_closed_set_step_is_the_cross_entropy_over_known_classes():
    network, (images, labels, _) = TwoHeads(hybrid=False), a_batch()
    labels[0, 0, 0] = OUTLIER
    terms = whole(closed_set_step())(network, images, labels)
    known = labels < 3
    found = zip(pixels(network(images), known), labels[known].tolist(), strict=True)
    values = [log_sum_exp(pixel) - pixel[label] for pixel, label in found]
    assert terms.keys() == {"class"}
    assert terms["class"].item() == pytest.approx(sum(values) / len(values), rel=1e-5)


class Frames(list):
    """Samples (image uint8, labels uint8, name)"""

    num_classes = 3


def frames(seed, outliers):
    generator = torch.Generator().manual_seed(seed)
    found = Frames()
    for name in "ab":
        image = torch.randint(256, (3, 12, 16), generator=generator, dtype=torch.uint8)
        labels = torch.randint(3, (12, 16), generator=generator, dtype=torch.uint8)
        labels[:2], labels[4:7] = IGNORE, OUTLIER if outliers else 0
        found.append((image, labels, f"{name}.png"))
    return found


def intersection_over_union(network, dataset):
    """The mean over classes, counted pixel by pixel"""
    hits, unions = np.zeros(3), np.zeros(3)
    for image, labels, _ in dataset:
        outputs = network(image[None] / 255)
        found = (outputs[0] if network.hybrid else outputs)[0].argmax(0)
        for guess, label in zip(found.flatten().tolist(), labels.flatten().tolist(), strict=True):
            if label < 3:
                hits[label] += guess == label
                unions[label] += 1
                unions[guess] += guess != label
    return np.mean(hits / unions)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path, CPU, record={})


def test_a_validation_scores_images_with_negatives_and_segments_those_without(run):
    known, pasted, network = frames(1, outliers=False), frames(2, outliers=True), TwoHeads().eval()
    figures = hybrid_validation(known, pasted, run)(network)
    scores, truth = [], []
    for image, labels, _ in pasted:
        class_logits, dataset_logits = (maps.detach()[0].double() for maps in network(image[None] / 255))
        score = dataset_logits.log_softmax(0)[1] - class_logits.logsumexp(0)
        scores += score[labels != IGNORE].tolist()
        truth += (labels[labels != IGNORE] == OUTLIER).tolist()
    assert figures.keys() == {"AP", "FPR95", "mIoU"}
    assert figures["AP"] == pytest.approx(sklearn.metrics.average_precision_score(truth, scores), abs=1e-3)
    assert figures["mIoU"] == pytest.approx(intersection_over_union(network, known), abs=1e-6)


def test_a_closed_set_validation_segments(run):
    known, network = frames(1, outliers=False), TwoHeads(hybrid=False).eval()
    figures = closed_set_validation(known, run)(network)
    assert figures == {"mIoU": pytest.approx(intersection_over_union(network, known), abs=1e-6)}


def test_windows_take_the_models_place_where_they_are_given(run):
    class Unused(nn.Module):
        def forward(self, images):
            raise AssertionError("the model itself was asked")

    known, pasted = frames(1, outliers=False), frames(2, outliers=True)
    network = TwoHeads().eval()
    expected = hybrid_validation(known, pasted, run)(network)
    assert hybrid_validation(known, pasted, run, network)(Unused()) == expected
    closed = TwoHeads(hybrid=False).eval()
    expected = closed_set_validation(known, run)(closed)
    assert closed_set_validation(known, run, closed)(Unused()) == expected

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from labels import IGNORE, OUTLIER
from losses import (
    closed_set_loss,
    dense_hybrid_loss,
    pixel_counts,
)
from models import ladder_densenet121
from tests.support.samples import random_batch

BETA = 0.03
TERMS = ("class", "likelihood", "dataset")


def slow_terms(class_logits, dataset_logits, labels, beta, ignored_are_inliers=False):
    """L = CE over labelled inliers + beta * mean over out of logsumexp + 10 beta * CE of membership, pixel by pixel"""
    sums, counts = {term: torch.zeros((), dtype=torch.float64) for term in TERMS}, dict.fromkeys(TERMS, 0)
    for image, row, column in torch.cartesian_prod(*(torch.arange(n) for n in labels.shape)).tolist():
        label = int(labels[image, row, column])
        masses = class_logits[image, :, row, column].double().exp()
        inlier_mass, outlier_mass = dataset_logits[image, :, row, column].double().exp()
        if label == OUTLIER:
            sums["likelihood"] = sums["likelihood"] + masses.sum().log()
            counts["likelihood"] += 1
        elif label != IGNORE:
            sums["class"] = sums["class"] - (masses[label] / masses.sum()).log()
            counts["class"] += 1
        if label != IGNORE or ignored_are_inliers:
            mass = outlier_mass if label == OUTLIER else inlier_mass
            sums["dataset"] = sums["dataset"] - (mass / (inlier_mass + outlier_mass)).log()
            counts["dataset"] += 1
    weights = {"class": 1, "likelihood": beta, "dataset": 10 * beta}
    return {term: weights[term] * sums[term] / max(1, counts[term]) for term in TERMS}


def gradients(terms, *logits):
    return torch.autograd.grad(sum(terms.values()), logits)


# The training losses


@pytest.mark.parametrize("ignored_are_inliers", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_terms_and_gradients_are_those_of_a_slow_float64_loop(seed, ignored_are_inliers):
    *logits, labels = random_batch(seed)
    terms = dense_hybrid_loss(*logits, labels, BETA, ignored_are_inliers=ignored_are_inliers)
    expected = slow_terms(*logits, labels, BETA, ignored_are_inliers)
    assert terms.keys() == expected.keys()
    for term in TERMS:
        assert terms[term].item() == pytest.approx(expected[term].item(), rel=1e-5), term
    for ours, theirs in zip(gradients(terms, *logits), gradients(expected, *logits), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_two_pixels_by_hand():
    # An inlier of class 1 with P = 3/4 and P(d_in) = 4/5; an outlier with p^ = 4 and P(d_out) = 1/2.
    class_logits = torch.tensor([[0, math.log(3)], [0, math.log(3)]]).T[None, :, None]
    dataset_logits = torch.tensor([[math.log(4), 0], [0, 0]]).T[None, :, None]
    terms = dense_hybrid_loss(class_logits, dataset_logits, torch.tensor([[[1, OUTLIER]]]), beta=0.5)
    assert terms["class"].item() == pytest.approx(math.log(4 / 3))
    assert terms["likelihood"].item() == pytest.approx(0.5 * math.log(4))
    assert terms["dataset"].item() == pytest.approx(10 * 0.5 * (math.log(5 / 4) + math.log(2)) / 2)


def test_one_outlier_pixel_is_the_whole_likelihood_term():
    class_logits, dataset_logits, labels = random_batch()
    labels[labels == OUTLIER] = 0
    labels[1, 2, 3] = OUTLIER
    terms = dense_hybrid_loss(class_logits, dataset_logits, labels, BETA)
    alone = class_logits[1, :, 2, 3].double().exp().sum().log()
    assert terms["likelihood"].item() == pytest.approx(BETA * alone.item())
    pushed = gradients({"likelihood": terms["likelihood"]}, class_logits)[0].abs().sum(1) > 0
    assert pushed.nonzero().tolist() == [[1, 2, 3]]


def test_a_batch_without_negatives_is_finite():
    *logits, labels = random_batch()
    labels[labels == OUTLIER] = 2
    terms = dense_hybrid_loss(*logits, labels, BETA)
    assert terms["likelihood"].item() == 0
    for term in ("class", "dataset"):
        assert terms[term].item() == pytest.approx(slow_terms(*logits, labels, BETA)[term].item(), rel=1e-5)
    assert all(gradient.isfinite().all() for gradient in gradients(terms, *logits))


def test_a_batch_of_ignored_pixels_is_zero_with_zero_gradient():
    *logits, labels = random_batch()
    terms = dense_hybrid_loss(*logits, torch.full_like(labels, IGNORE), BETA)
    assert [term.item() for term in terms.values()] == [0, 0, 0]
    assert not any(gradient.any() for gradient in gradients(terms, *logits))
    assert closed_set_loss(logits[0], torch.full_like(labels, IGNORE))["class"].item() == 0


def test_a_batch_of_outliers_has_no_class_term():
    *logits, labels = random_batch()
    labels = torch.full_like(labels, OUTLIER)
    terms = dense_hybrid_loss(*logits, labels, BETA)
    assert terms["class"].item() == 0
    for term in ("likelihood", "dataset"):
        assert terms[term].item() == pytest.approx(slow_terms(*logits, labels, BETA)[term].item(), rel=1e-5)
    assert all(gradient.isfinite().all() for gradient in gradients(terms, *logits))


def test_ignored_pixels_change_nothing():
    class_logits, dataset_logits, labels = random_batch()
    ignored = (labels == IGNORE)[:, None]
    before = dense_hybrid_loss(class_logits, dataset_logits, labels, BETA)
    after = dense_hybrid_loss(
        class_logits.masked_fill(ignored, 50), dataset_logits.masked_fill(ignored, -50), labels, BETA
    )
    assert {term: value.item() for term, value in before.items()} == {t: value.item() for t, value in after.items()}
    for gradient in gradients(before, class_logits, dataset_logits):
        assert not gradient.masked_select(ignored).any()


def test_ignored_pixels_count_as_inliers_where_asked():
    class_logits, dataset_logits, labels = random_batch()
    terms = dense_hybrid_loss(class_logits, dataset_logits, labels, BETA, ignored_are_inliers=True)
    as_inliers = (labels == OUTLIER).long()
    assert terms["dataset"].item() == pytest.approx(10 * BETA * F.cross_entropy(dataset_logits, as_inliers).item())
    class_gradient, dataset_gradient = gradients(terms, class_logits, dataset_logits)
    ignored = (labels == IGNORE)[:, None]
    assert not class_gradient.masked_select(ignored).any()
    assert (dataset_gradient.masked_select(ignored).view(-1) != 0).all()


def test_outliers_get_no_gradient_from_the_class_term_nor_inliers_from_the_likelihood_term():
    class_logits, dataset_logits, labels = random_batch()
    terms = dense_hybrid_loss(class_logits, dataset_logits, labels, BETA)
    outlier = labels == OUTLIER
    for term, pixels in (("class", ~outlier & (labels != IGNORE)), ("likelihood", outlier)):
        reached = torch.autograd.grad(terms[term], class_logits, retain_graph=True)[0].abs().sum(1) > 0
        torch.testing.assert_close(reached, pixels)


def test_labels_may_be_bytes():
    *logits, labels = random_batch()
    of_bytes = dense_hybrid_loss(*logits, labels.to(torch.uint8), BETA)
    assert of_bytes == dense_hybrid_loss(*logits, labels, BETA)


@pytest.mark.parametrize("label", [5, 100, 253, -1])
def test_a_label_that_is_no_class_is_refused(label):
    class_logits, dataset_logits, labels = random_batch(num_classes=5)
    labels[0, 0, 0] = label
    with pytest.raises((IndexError, ValueError), match="out of bounds"):
        dense_hybrid_loss(class_logits, dataset_logits, labels, BETA)
    with pytest.raises((IndexError, ValueError), match="out of bounds"):
        closed_set_loss(class_logits, labels)


def test_the_likelihood_margin_stops_the_push_below_it():
    # Three outliers whose ln p^ is ln 2 - 3, ln 2 and ln 2 + 3.
    class_logits = torch.tensor([-3.0, 0.0, 3.0]).expand(1, 2, 1, 3).clone().requires_grad_()
    labels, margin = torch.full((1, 1, 3), OUTLIER), 0.0
    terms = dense_hybrid_loss(class_logits, torch.zeros(1, 2, 1, 3), labels, BETA, likelihood_margin=margin)
    assert terms["likelihood"].item() == pytest.approx(BETA * (margin + 2 * math.log(2) + 3) / 3)
    gradient = torch.autograd.grad(terms["likelihood"], class_logits)[0]
    torch.testing.assert_close(gradient, torch.tensor([0, BETA / 6, BETA / 6]).expand(1, 2, 1, 3))


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_extreme_logits_give_finite_terms_and_gradients(size):
    class_logits, dataset_logits, labels = random_batch(seed=3)
    logits = [(size * tensor.detach().sign()).requires_grad_() for tensor in (class_logits, dataset_logits)]
    terms = dense_hybrid_loss(*logits, labels, BETA)
    assert all(term.isfinite() for term in terms.values())
    assert all(gradient.isfinite().all() for gradient in gradients(terms, *logits))
    assert terms["dataset"].item() > BETA * size  # membership is wrong by 2 * size nats about every fourth time


def test_terms_are_float32_under_bfloat16_autocast():
    torch.manual_seed(0)
    images, (*_, labels) = torch.rand(2, 3, 6, 7), random_batch()
    heads = nn.Conv2d(3, 5 + 2, 1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = heads(images)
        assert logits.dtype == torch.bfloat16
        terms = dense_hybrid_loss(logits[:, :5], logits[:, 5:], labels, BETA)
    expected = slow_terms(logits[:, :5], logits[:, 5:], labels, BETA)
    for term in TERMS:
        assert terms[term].dtype == torch.float32
        assert terms[term].item() == pytest.approx(expected[term].item(), rel=1e-5)
    sum(terms.values()).backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in heads.parameters())


def test_the_closed_set_loss_is_the_mean_cross_entropy_over_known_pixels():
    class_logits, _, labels = random_batch()
    known = torch.where(labels == OUTLIER, IGNORE, labels)
    ours, theirs = closed_set_loss(class_logits, labels), F.cross_entropy(class_logits, known, ignore_index=IGNORE)
    assert ours.keys() == {"class"}
    assert ours["class"].item() == pytest.approx(theirs.item())
    torch.testing.assert_close(gradients(ours, class_logits)[0], torch.autograd.grad(theirs, class_logits)[0])


def test_pixel_counts_by_hand():
    labels = torch.tensor([[[0, 3, OUTLIER], [IGNORE, IGNORE, 1]]])
    assert {term: int(n) for term, n in pixel_counts(labels).items()} == {"class": 3, "likelihood": 1, "dataset": 4}
    assert int(pixel_counts(labels, ignored_are_inliers=True)["dataset"]) == 6


@pytest.mark.slow
@pytest.mark.parametrize("ignored_are_inliers", [False, True])
def test_micro_batches_with_the_counts_of_the_whole_give_the_gradient_of_the_whole(ignored_are_inliers):
    torch.manual_seed(0)
    model = ladder_densenet121(4).eval()  # BatchNorm frozen, so that images do not see each other
    images = torch.rand(3, 3, 32, 64)
    labels = torch.randint(4, (3, 32, 64))
    labels[0, :20, :20], labels[1, :4], labels[2, :, 40:] = OUTLIER, IGNORE, OUTLIER

    def backward(part, counts=None):
        terms = dense_hybrid_loss(*model(images[part]), labels[part], BETA, counts, ignored_are_inliers)
        sum(terms.values()).backward()
        return {term: value.item() for term, value in terms.items()}

    def take_gradients():
        taken = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return taken

    terms_of_whole, whole = backward(slice(0, 3)), take_gradients()
    counts = pixel_counts(labels, ignored_are_inliers)
    parts = [backward(part, counts) for part in (slice(0, 1), slice(1, 3))]
    for term in TERMS:
        assert sum(part[term] for part in parts) == pytest.approx(terms_of_whole[term], rel=1e-5)
    in_parts = take_gradients()
    assert whole.keys() == in_parts.keys()
    for name, gradient in whole.items():
        assert (in_parts[name] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + 1e-9, name
    for part in (slice(0, 1), slice(1, 3)):  # what counts are for: each part's own mean is another gradient
        backward(part)
    own_means = take_gradients()["logits.conv.bias"]
    assert (own_means - whole["logits.conv.bias"]).abs().max() > 0.05 * whole["logits.conv.bias"].abs().max()


def test_the_loss_leaves_its_inputs_as_they_were():
    class_logits, dataset_logits, labels = (tensor.detach() for tensor in random_batch())
    before = copy.deepcopy((class_logits, dataset_logits, labels))
    dense_hybrid_loss(class_logits, dataset_logits, labels, BETA, likelihood_margin=0.0)
    for tensor, original in zip((class_logits, dataset_logits, labels), before, strict=True):
        assert tensor.equal(original)

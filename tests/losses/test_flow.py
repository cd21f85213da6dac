import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from losses import bits_per_dimension, jensen_shannon_to_uniform, synthetic_negatives_loss


def pixels(*logits):
    """Class logits (1, K, 1, pixels), and a mask that has all of them"""
    class_logits = torch.tensor(logits).T[None, :, None]
    return class_logits, torch.ones(1, 1, len(logits), dtype=torch.bool)


def random_batch(seed=0, batch=2, num_classes=5, height=6, width=7, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    class_logits = 3 * torch.randn(batch, num_classes, height, width, generator=generator, dtype=dtype)
    outlier_mask = torch.rand(batch, height, width, generator=generator) < 0.3
    return class_logits.requires_grad_(), outlier_mask


def slow_sum(class_logits, outlier_mask):
    """KL(P || M) / 2 + KL(U || M) / 2 with M = (P + U) / 2, pixel by pixel"""
    total, num_classes = torch.zeros((), dtype=torch.float64), class_logits.shape[1]
    for image, row, column in outlier_mask.nonzero().tolist():
        masses = class_logits[image, :, row, column].double().exp()
        for mass in masses / masses.sum():
            mean = (mass + 1 / num_classes) / 2
            total = total + 0.5 * mass * (mass / mean).log() - 0.5 / num_classes * (num_classes * mean).log()
    return total


# Bits per dimension


def test_bits_per_dimension_by_hand():
    log_prob = torch.tensor([-12 * math.log(2), -36 * math.log(2)])  # 12 and 36 bits in 12 values
    assert bits_per_dimension(log_prob, 12).item() == pytest.approx(2)


def test_an_even_density_over_stored_values_has_eight_bits_per_dimension():
    values = 3 * 16 * 24
    assert bits_per_dimension(torch.full((5,), -values * math.log(256)), values).item() == pytest.approx(8)


def test_every_image_has_its_share_of_the_gradient_of_the_bits():
    log_prob = torch.tensor([-5.0, -7.0, 3.0], requires_grad=True)
    bits_per_dimension(log_prob, 10).backward()
    assert log_prob.grad.tolist() == pytest.approx([-1 / (3 * 10 * math.log(2))] * 3)


# The divergence from uniform


def test_two_pixels_by_hand():
    # P = (3/4, 1/4) against U = (1/2, 1/2): M = (5/8, 3/8). And a second pixel that is uniform.
    class_logits, mask = pixels([math.log(3), 0.0], [5.0, 5.0])
    to_posterior = 3 / 4 * math.log(6 / 5) + 1 / 4 * math.log(2 / 3)
    to_uniform = 1 / 2 * math.log(4 / 5) + 1 / 2 * math.log(4 / 3)
    expected = (to_posterior + to_uniform) / 2 / 2
    assert jensen_shannon_to_uniform(class_logits, mask).item() == pytest.approx(expected, rel=1e-5)


def test_three_classes_by_hand():
    # P = (1/2, 1/3, 1/6) against U = 1/3 each: M = (5/12, 1/3, 1/4).
    class_logits, mask = pixels([math.log(3), math.log(2), 0.0])
    to_posterior = 1 / 2 * math.log(6 / 5) + 1 / 6 * math.log(2 / 3)
    to_uniform = 1 / 3 * math.log(4 / 5) + 1 / 3 * math.log(4 / 3)
    expected = (to_posterior + to_uniform) / 2
    assert jensen_shannon_to_uniform(class_logits, mask).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_value_and_gradient_are_those_of_a_slow_float64_loop(seed):
    class_logits, mask = random_batch(seed)
    divergence = jensen_shannon_to_uniform(class_logits, mask)
    expected = slow_sum(class_logits, mask) / mask.sum()
    assert divergence.item() == pytest.approx(expected.item(), rel=1e-5)
    (ours,), (theirs,) = (torch.autograd.grad(value, class_logits) for value in (divergence, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-8)


def test_it_is_the_square_of_scipys_distance():
    class_logits, mask = random_batch(2)
    posterior = class_logits.detach().softmax(1).permute(0, 2, 3, 1)[mask].double().numpy()
    expected = np.mean([jensenshannon(p, np.full(5, 1 / 5)) ** 2 for p in posterior])
    assert jensen_shannon_to_uniform(class_logits, mask).item() == pytest.approx(expected, rel=1e-5)


def test_uniform_posteriors_have_none():
    class_logits, mask = pixels([7.0] * 19, [-1e4] * 19, [1e4] * 19)
    class_logits.requires_grad_()
    divergence = jensen_shannon_to_uniform(class_logits, mask)
    divergence.backward()
    assert abs(divergence.item()) < 1e-6 and class_logits.grad.abs().max() < 1e-6


@pytest.mark.parametrize("num_classes", [2, 19, 133])
def test_a_sure_posterior_has_the_most_and_that_is_less_than_ln_two(num_classes):
    class_logits, mask = pixels([1e4] + [-1e4] * (num_classes - 1))
    divergence = jensen_shannon_to_uniform(class_logits, mask).item()
    # P is 1 in one class: M is (1 + 1/K)/2 there and 1/(2K) elsewhere.
    mean, u = (1 + 1 / num_classes) / 2, 1 / num_classes
    most = (-math.log(mean) + u * math.log(u / mean) + (1 - u) * math.log(2)) / 2
    assert divergence == pytest.approx(most, rel=1e-5) and divergence < math.log(2)
    less_sure, _ = pixels([3.0] + [0.0] * (num_classes - 1))
    assert jensen_shannon_to_uniform(less_sure, mask).item() < divergence


@pytest.mark.parametrize("extreme", [100.0, 1e4, 1e30])
def test_extreme_logits_have_finite_values_and_gradients(extreme):
    class_logits, mask = pixels([extreme, -extreme, 0.0], [-extreme, -extreme, extreme], [extreme, extreme, 0.0])
    class_logits.requires_grad_()
    divergence = jensen_shannon_to_uniform(class_logits, mask)
    divergence.backward()
    assert 0 < divergence.item() < math.log(2) and class_logits.grad.isfinite().all()


def test_no_outlier_gives_zero_and_no_gradient():
    class_logits, mask = random_batch()
    divergence = jensen_shannon_to_uniform(class_logits, torch.zeros_like(mask))
    divergence.backward()
    assert divergence.item() == 0 and not class_logits.grad.any() and class_logits.grad.isfinite().all()


def test_gradients_reach_the_outliers_alone():
    class_logits, mask = random_batch()
    jensen_shannon_to_uniform(class_logits, mask).backward()
    assert (class_logits.grad.abs().sum(1) > 0).equal(mask)


def test_what_the_network_says_of_inliers_changes_nothing():
    class_logits, mask = random_batch()
    other = class_logits.detach().where(mask[:, None], 77.0)
    assert jensen_shannon_to_uniform(other, mask).equal(jensen_shannon_to_uniform(class_logits, mask).detach())


@pytest.mark.parametrize("kind", [int, torch.tensor])
def test_the_count_can_come_from_outside(kind):
    class_logits, mask = random_batch()
    divergence = jensen_shannon_to_uniform(class_logits, mask, count=kind(64))
    assert divergence.item() == pytest.approx(slow_sum(class_logits, mask).item() / 64, rel=1e-5)
    parts = [jensen_shannon_to_uniform(class_logits[i : i + 1], mask[i : i + 1], count=kind(64)) for i in range(2)]
    assert sum(parts).item() == pytest.approx(divergence.item(), rel=1e-5)


def test_patches_that_show_in_part_count_whole():
    class_logits, mask = random_batch()
    patches, log_prob = torch.rand(2, 3, 4, 5), torch.tensor([-60 * math.log(2), -180 * math.log(2)])
    terms = synthetic_negatives_loss(class_logits, mask, log_prob, patches, divergence_weight=0.3, bits_weight=5.0)
    assert 0 < mask.sum() < 2 * 4 * 5
    expected = 0.3 * slow_sum(class_logits, mask).item() / (2 * 4 * 5)
    assert terms["jensen_shannon"].item() == pytest.approx(expected, rel=1e-5)
    assert terms["bits_per_dimension"].item() == pytest.approx(5 * 2)  # 1 and 3 bits in each of 60 values


def test_bfloat16_logits_are_compared_in_float32():
    class_logits, mask = random_batch()
    rounded = class_logits.detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        divergence = jensen_shannon_to_uniform(rounded, mask)
    assert divergence.dtype == torch.float32
    assert divergence.item() == pytest.approx(slow_sum(rounded, mask).item() / mask.sum().item(), rel=1e-5)

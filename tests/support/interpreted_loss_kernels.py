"""The losses' kernels against PyTorch's operations; test_loss_kernels.py has Triton's interpreter run this on a CPU."""

import pytest
import torch

from labels import IGNORE, OUTLIER
from losses import closed_set_loss, dense_hybrid_loss, jensen_shannon_to_uniform, kernels, pixel_counts

BETA = 0.3
LAYOUTS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}
WITHIN = {  # of the largest: gradients of bfloat16 and float16 are rounded once here, and in PyTorch twice
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
}


def batch(num_classes=5, size=(7, 9), dtype=torch.float32, layout="NCHW", label_dtype=torch.int64, images=2):
    """Logits and labels with outliers and ignored pixels; 63 pixels are no whole number of programs"""
    generator = torch.Generator().manual_seed(num_classes)
    logits = (4 * torch.randn(images, channels, *size, generator=generator) for channels in (num_classes, 2))
    logits = [maps.to(dtype, memory_format=LAYOUTS[layout]).requires_grad_() for maps in logits]
    labels = torch.randint(num_classes, (images, *size), generator=generator)
    kind = torch.rand(labels.shape, generator=generator)
    labels = labels.masked_fill(kind < 0.4, IGNORE).masked_fill(kind < 0.2, OUTLIER)
    return *logits, labels.to(label_dtype)


@pytest.fixture
def with_kernels(monkeypatch):
    """A call of which the loss takes its kernels, as on a GPU"""

    def call(loss, *arguments, **options):
        with monkeypatch.context() as patch:
            for module in ("dense_hybrid", "flow"):
                patch.setattr(f"losses.{module}.kernels_for", lambda *tensors: kernels)
            return loss(*arguments, **options)

    return call


def assert_equal_terms_and_gradients(ours, theirs, logits, within=None):
    assert ours.keys() == theirs.keys()
    for term in theirs:
        assert ours[term].dtype == torch.float32
        assert ours[term].item() == pytest.approx(theirs[term].item(), rel=1e-5), term
    weights = {"class": 1.0, "likelihood": 0.7, "dataset": 1.3, "divergence": 0.9}
    gradients = [
        torch.autograd.grad(sum(weights[name] * term for name, term in terms.items()), logits)
        for terms in (ours, theirs)
    ]
    for one, other, maps in zip(*gradients, logits, strict=True):
        assert (one.dtype, one.stride()) == (maps.dtype, maps.stride())
        largest = other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=0, atol=(within or WITHIN[maps.dtype]) * largest)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", WITHIN)
@pytest.mark.parametrize("num_classes", [1, 5, 12, 254])
def test_terms_and_gradients_are_those_of_pytorch(num_classes, dtype, layout, with_kernels):
    *logits, labels = batch(num_classes, dtype=dtype, layout=layout)
    theirs = dense_hybrid_loss(*logits, labels, BETA)
    assert_equal_terms_and_gradients(with_kernels(dense_hybrid_loss, *logits, labels, BETA), theirs, logits)


@pytest.mark.parametrize("ignored_are_inliers", [False, True])
@pytest.mark.parametrize("likelihood_margin", [None, 0.0, 6.0])
def test_options_are_those_of_pytorch(likelihood_margin, ignored_are_inliers, with_kernels):
    *logits, labels = batch(12, label_dtype=torch.uint8)
    counts = {"class": 17, "likelihood": torch.tensor(11), "dataset": torch.tensor(0)}
    options = {
        "counts": counts,
        "ignored_are_inliers": ignored_are_inliers,
        "likelihood_margin": likelihood_margin,
    }
    theirs = dense_hybrid_loss(*logits, labels, BETA, **options)
    assert_equal_terms_and_gradients(with_kernels(dense_hybrid_loss, *logits, labels, BETA, **options), theirs, logits)


def test_a_density_at_the_margin_is_not_pushed(with_kernels):
    class_logits = torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 1, 3).requires_grad_()  # of one class: ln p^ itself
    dataset_logits, labels = torch.zeros(1, 2, 1, 3, requires_grad=True), torch.full((1, 1, 3), OUTLIER)
    logits, options = (class_logits, dataset_logits), {"likelihood_margin": 0.0}
    theirs = dense_hybrid_loss(*logits, labels, BETA, **options)
    assert_equal_terms_and_gradients(with_kernels(dense_hybrid_loss, *logits, labels, BETA, **options), theirs, logits)


@pytest.mark.parametrize("label", [IGNORE, OUTLIER, 3])
@pytest.mark.parametrize("ignored_are_inliers", [False, True])
def test_a_batch_of_one_kind_of_pixel(label, ignored_are_inliers, with_kernels):
    *logits, labels = batch(5, layout="channels-last")
    options = {"ignored_are_inliers": ignored_are_inliers}
    labels = torch.full_like(labels, label)
    theirs = dense_hybrid_loss(*logits, labels, BETA, **options)
    assert_equal_terms_and_gradients(with_kernels(dense_hybrid_loss, *logits, labels, BETA, **options), theirs, logits)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_many_programs_add_up(layout, with_kernels):
    *logits, labels = batch(12, size=(37, 29), layout=layout, images=3)  # 1073 pixels of an image in 5 programs
    theirs = dense_hybrid_loss(*logits, labels, BETA)
    assert_equal_terms_and_gradients(with_kernels(dense_hybrid_loss, *logits, labels, BETA), theirs, logits)
    theirs = closed_set_loss(logits[0], labels)
    assert_equal_terms_and_gradients(with_kernels(closed_set_loss, logits[0], labels), theirs, logits[:1])


def test_logits_with_gaps_and_strange_strides(with_kernels):
    wide, _, labels = batch(12, size=(8, 10))
    for logits in ((wide[:, :5], wide[:, 5:7]), (wide[:, 3:8].transpose(2, 3), wide[:, :4:2].transpose(2, 3))):
        own = labels % 5 if logits[0].shape[2] == 8 else labels.transpose(1, 2) % 5
        terms = with_kernels(dense_hybrid_loss, *logits, own, BETA), dense_hybrid_loss(*logits, own, BETA)
        for name in terms[0]:
            assert terms[0][name].item() == pytest.approx(terms[1][name].item(), rel=1e-5)
        ours, theirs = (torch.autograd.grad(sum(of.values()), wide)[0] for of in terms)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_extreme_logits(size, with_kernels):
    *logits, labels = batch(5)
    logits = [(size * maps.detach().sign()).requires_grad_() for maps in logits]
    theirs = dense_hybrid_loss(*logits, labels, BETA)
    ours = with_kernels(dense_hybrid_loss, *logits, labels, BETA)
    rounding = 1e-7 * size  # of ln p^ in float32, whose exponential PyTorch takes for the gradient
    assert_equal_terms_and_gradients(ours, theirs, logits, within=rounding)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("label", "margin"), [(IGNORE, 0.0), (OUTLIER, None), (OUTLIER, 0.0), (1, None)])
def test_what_is_not_finite_stays_so_where_pytorch_has_it(value, label, margin, with_kernels):
    class_logits, dataset_logits, labels = batch(5)
    labels[0, 0] = label
    logits = [class_logits.detach(), dataset_logits.detach()]
    logits[0][0, 2, 0, 0] = logits[1][0, 1, 0, 1] = value
    logits = [maps.requires_grad_() for maps in logits]
    arguments = *logits, labels, BETA, None, False, margin
    terms = [with_kernels(dense_hybrid_loss, *arguments), dense_hybrid_loss(*arguments)]
    for name in terms[0]:
        assert terms[0][name].isfinite() == terms[1][name].isfinite(), name
    likelihoods = [of["likelihood"].item() for of in terms]
    assert likelihoods[0] == pytest.approx(likelihoods[1], nan_ok=True)  # infinite or not a number as well
    ours, theirs = (torch.autograd.grad(sum(of.values()), logits) for of in terms)
    for one, other in zip(ours, theirs, strict=True):  # all of a pixel or some: either spoils the weights
        assert one.isfinite().all(1).equal(other.isfinite().all(1))


@pytest.mark.parametrize("label", [5, 253, -1])
def test_a_label_that_is_no_class_makes_the_class_term_nan(label, with_kernels):
    *logits, labels = batch(5)
    labels[0, 0, 0] = label
    terms = with_kernels(dense_hybrid_loss, *logits, labels, BETA)
    assert {name: term.isnan().item() for name, term in terms.items()} == {
        "class": True,
        "likelihood": False,
        "dataset": False,
    }


@pytest.mark.parametrize("label_dtype", [torch.int64, torch.uint8])
@pytest.mark.parametrize("ignored_are_inliers", [False, True])
def test_counts_are_those_of_pytorch(ignored_are_inliers, label_dtype, with_kernels):
    labels = batch(5, size=(53, 47), label_dtype=label_dtype)[2]  # 4982 pixels in two programs
    theirs = pixel_counts(labels, ignored_are_inliers)
    assert with_kernels(pixel_counts, labels, ignored_are_inliers) == theirs
    assert min(int(number) for number in theirs.values()) > 500


def test_evaluating_the_loss_needs_no_gradient(with_kernels):
    *logits, labels = batch(5)
    with torch.no_grad():
        terms = with_kernels(dense_hybrid_loss, *logits, labels, BETA)
    assert not any(term.requires_grad for term in terms.values())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", WITHIN)
@pytest.mark.parametrize("num_classes", [1, 5, 19, 254])
def test_the_divergence_is_that_of_pytorch(num_classes, dtype, layout, with_kernels):
    class_logits, _, labels = batch(num_classes, dtype=dtype, layout=layout)
    theirs = {"divergence": jensen_shannon_to_uniform(class_logits, labels == OUTLIER, count=7)}
    ours = {"divergence": with_kernels(jensen_shannon_to_uniform, class_logits, labels == OUTLIER, count=7)}
    assert_equal_terms_and_gradients(ours, theirs, [class_logits])


def test_the_divergence_of_what_is_certain_and_of_no_outlier(with_kernels):
    class_logits = torch.tensor([[1e4, 0.0], [0.0, 0.0], [200.0, -200.0]]).T[None, :, None].clone().requires_grad_()
    for outlier in (torch.ones(1, 1, 3, dtype=torch.bool), torch.zeros(1, 1, 3, dtype=torch.bool)):
        ours = with_kernels(jensen_shannon_to_uniform, class_logits, outlier)
        theirs = jensen_shannon_to_uniform(class_logits, outlier)
        assert_equal_terms_and_gradients({"divergence": ours}, {"divergence": theirs}, [class_logits])

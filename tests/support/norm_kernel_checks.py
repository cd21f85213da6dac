"""Triton's kernels against torch's operators; test_norms.py runs it with TRITON_INTERPRET=1, which takes a CPU."""

import torch

from models import norm_kernels
from tests.support import plain_kernels

EPS = 1e-5
ULP = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
CASES = [  # rows, width, row step, type, programs of a sum
    (7, 12, 12, torch.float32, 512),
    (200, 96, 130, torch.bfloat16, 2),
    (701, 64, 64, torch.float16, 4),
    (2, 1, 3, torch.float32, 512),
    (40, 1935, 1984, torch.bfloat16, 32),
    (1200, 20, 20, torch.float32, 34),
]


def rows_of(rows, width, row_step, dtype, at=0.0):
    return (at + torch.randn(rows, row_step)).to(dtype)[:, row_step - width :]


def assert_close(ours, theirs, tolerance, name):
    largest = theirs.abs().max().item()
    near = {"rtol": tolerance, "atol": tolerance * largest}
    torch.testing.assert_close(ours, theirs, **near, msg=lambda text: f"{name}: {text}")


def check(rows, width, row_step, dtype, programs):
    norm_kernels.PROGRAMS = programs
    case = (rows, width, row_step, dtype)
    features = rows_of(*case, at=3.0)
    grad = rows_of(*case)
    weight, bias = 1 + 0.3 * torch.randn(2, width)
    bias -= 1
    weight[0] = -weight[0]
    ulp, summing = ULP[dtype], 1e-5

    room = torch.zeros(rows, width + 5, dtype=dtype)
    moments = torch.zeros(3, width + 2)
    norm_kernels.moments_of(features, moments[:, 1:-1], EPS, room[:, 3:-2])
    expected = torch.zeros(3, width, dtype=torch.float64)
    plain_kernels.moments_of(features.double(), expected, EPS)
    assert_close(moments[:, 1:-1], expected.float(), 2e-6, "moments")
    assert torch.equal(room[:, 3:-2], features) and not room[:, :3].any() and not room[:, -2:].any()
    assert not moments[:, 0].any() and not moments[:, -1].any()
    norm_kernels.moments_of(features, moments[:, 1:-1], EPS)
    assert_close(moments[:, 1:-1], expected.float(), 2e-6, "moments without a copy")
    moments = moments[:, 1:-1]
    given = features, moments, weight, bias

    for out_dtype in {dtype, torch.bfloat16}:
        ours = norm_kernels.norm_relu(*given, out_dtype)
        assert ours.dtype == out_dtype
        assert_close(ours, plain_kernels.norm_relu(*given, out_dtype), max(ulp, ULP[out_dtype]), "norm_relu")

    expected = plain_kernels.summed(grad, *given)
    sums = norm_kernels.summed(grad, *given)
    assert_close(sums, expected, summing, "sums")
    ours = norm_kernels.features_gradient(grad, *given, sums)
    assert_close(ours, plain_kernels.features_gradient(grad, *given, sums), ulp, "gradient")

    base = rows_of(*case)
    for out in (base.clone(), None):
        outs = [base.clone() if out is None else torch.zeros(rows, width + 1, dtype=dtype)[:, :-1] for _ in range(2)]
        owed = torch.ones(2, 2, width + 4)
        for kernels, target, debts in zip((norm_kernels, plain_kernels), outs, owed, strict=True):
            found = kernels.summed(grad, *given, target if out is None else base, target, debts[:, 2:-2])
            assert_close(found, expected, summing, "sums, adding")
        assert_close(outs[0], outs[1], ulp, "added")
        assert_close(owed[0], owed[1], summing, "owed")
    owed = owed[1, :, 2:-2]
    ours = norm_kernels.settled(base, features, moments, owed)
    assert ours.is_contiguous()
    assert_close(ours, plain_kernels.settled(base, features, moments, owed), ulp, "settled")


def check_what_is_not_a_number():
    features = torch.tensor([[1.0, 2.0], [torch.nan, 4.0]])
    out = norm_kernels.norm_relu(features, torch.ones(3, 2), torch.ones(2), torch.zeros(2), torch.float32)
    assert out[1, 0].isnan() and out[1, 1] == 3


def check_large_means():
    features = 1000 + torch.randn(5000, 16)
    moments = torch.zeros(3, 16)
    norm_kernels.moments_of(features, moments, EPS)
    assert_close(moments[2], features.double().var(0).float(), 1e-4, "variance far from zero")


def main():
    torch.manual_seed(0)
    norm_kernels.FEW_PARTS, norm_kernels.MANY_PARTS = {"PARTS": 2, "COLUMNS": 64}, {"PARTS": 4, "COLUMNS": 8}
    for case in CASES:
        check(*case)
    check_what_is_not_a_number()
    check_large_means()


if __name__ == "__main__":
    main()

"""FLOPs and bytes, against what can be worked out by hand."""

import pytest
import torch
import torch.nn.functional as F

from training.costs import count_flops, fused_attention, kept_bytes


def test_flops_of_a_product_by_hand():
    a, b = torch.empty(3, 4, device="meta"), torch.empty(4, 5, device="meta")
    assert count_flops(lambda: a @ b) == 2 * 3 * 4 * 5


def test_attention_by_hand():
    """Two products of 5 x 5 and 8 a head; what is kept for the gradient grows with the length, not with its square."""
    query = torch.empty(2, 4, 5, 8, device="meta", requires_grad=True)
    key = torch.empty(2, 2, 5, 8, device="meta")
    assert (
        count_flops(lambda: F.scaled_dot_product_attention(query, key, key, enable_gqa=True)) == 4 * 2 * 4 * 5 * 5 * 8
    )

    def kept(length):
        x = torch.empty(1, 1, length, 8, device="meta", requires_grad=True)
        return kept_bytes(torch.nn.Module(), lambda: F.scaled_dot_product_attention(x, x, x, is_causal=True))

    assert kept(2000) == pytest.approx(2 * kept(1000), rel=0.01)


def test_counting_changes_no_number():
    x = torch.randn(1, 2, 5, 8)
    expected = F.scaled_dot_product_attention(x, x, x)
    with fused_attention():
        assert F.scaled_dot_product_attention(x, x, x).equal(expected)

"""Bytes alive while code runs, by hand-computed sizes, on the CPU and without data."""

from __future__ import annotations

import pytest
import torch

from diffusion.planning.live_bytes import FusedAttention, LikeAutocast, LiveBytes

KB = 1024


@pytest.mark.parametrize(("device", "place"), [("cpu", "host"), ("meta", "device")])
def test_storages_count_once_and_as_long_as_they_live(device, place):
    with LiveBytes() as live:
        a = torch.empty(256, device=device)  # 1 KB
        assert live.live[place] == KB
        b = a.view(16, 16).t()
        assert live.live[place] == KB  # the same storage
        c = b + 1
        del a
        assert live.live[place] == 2 * KB  # b holds it
        del b, c
    assert live.live == {"host": 0, "device": 0}
    assert live.peak[place] == 2 * KB == live.peak_total


@pytest.mark.parametrize(("device", "place"), [("cpu", "host"), ("meta", "device")])
def test_what_autograd_keeps_counts_until_it_is_used(device, place):
    weight = torch.empty(16, 16, device=device, requires_grad=True)
    weight.grad = torch.empty_like(weight)
    with LiveBytes() as live:
        x = torch.empty(16, 16, device=device)
        y = torch.tanh(x @ weight)  # keeps its output, and x for the weight
        z = torch.tanh(y)
        del x, y
        assert live.live[place] == 3 * KB  # x, y and z
        torch.autograd.backward(z, torch.empty_like(z))
        del z
    assert live.live[place] == 0


def test_weights_from_before_count_only_if_they_are_added():
    layer = torch.nn.Linear(16, 16, bias=False)
    with LiveBytes() as live:
        layer(torch.empty(1, 16))
        assert live.live["host"] == 0
        live.add(layer.parameters())
        live.add(layer.parameters())
        assert live.live["host"] == KB


def test_a_copy_to_the_cpu_is_the_hosts_and_costs_nothing():
    with LiveBytes() as live:
        there = torch.empty(16, 16, device="meta")
        here = there.cpu()
        more = here + 1
        assert live.live == {"device": KB, "host": 2 * KB}
        assert here.is_meta and more.is_meta
        assert not bool((there > 0).any())  # there is no value: no
        kept = torch.zeros(16, 16)
        kept.copy_(there)
        assert float(kept.sum()) == 0


def test_attention_keeps_no_table_of_all_pairs():
    query = torch.empty(1, 2, 1000, 8, device="meta", requires_grad=True)
    table = 2 * 1000 * 1000 * 4
    with LiveBytes() as live, FusedAttention():
        out = torch.nn.functional.scaled_dot_product_attention(query, key=query, value=query)
        assert out.shape == query.shape and live.peak["device"] < table / 10
        mask = torch.ones(1, 1, 1000, 1000, dtype=torch.bool, device="meta")
        both = torch.nn.functional.scaled_dot_product_attention(
            query=query, key=query[:, :1], value=query[:, :1], attn_mask=mask, enable_gqa=True
        )
        assert both.shape == query.shape


@pytest.mark.parametrize("norms", [True, False])
def test_autocast_keeps_what_autocast_keeps(norms):
    layer = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.LayerNorm(16))
    x = torch.randn(4, 16)
    with LiveBytes() as live, torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
        real = live.live["host"]
    assert out.dtype == torch.bfloat16  # norms included, on the CPU
    empty = layer.to("meta")
    with LiveBytes() as live, LikeAutocast(torch.bfloat16, norms=norms):
        out = empty(x.to("meta"))
        assert out.dtype == (torch.float32 if norms else torch.bfloat16)
        assert norms or live.live["device"] == pytest.approx(real, rel=0.1)

"""Packed attention against the plain formula, on every device that is there."""

import itertools

import pytest
import torch
from torch import Tensor

from omnigen2.network.attention import (
    MAX_PADDING,
    _has_flash,
    attend,
    grouped,
    newest_flash,
    packed_attention,
)
from tests.omnigen2.golden import PIPELINE, error, model

CPU = torch.device("cpu")
LENGTHS = [(5,), (4, 4, 4), (1, 30, 2, 31, 29, 0, 7), (64, 1), tuple(range(1, 12))]


def plain(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """softmax(q k / sqrt(d)) v, one sequence at a time, in float64."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, dim=1).double() for x in (key, value))
    parts = []
    for q, k, v in zip(query.double().split(lengths), key.split(lengths), value.split(lengths), strict=True):
        scores = torch.einsum("qhd,khd->hqk", q, k) / query.shape[-1] ** 0.5
        parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
    return torch.cat(parts)


def tokens(lengths: tuple[int, ...], heads: int, device: torch.device = CPU) -> Tensor:
    generator = torch.Generator().manual_seed(sum(lengths) + heads)
    return torch.randn((sum(lengths), heads, 16), generator=generator).to(device)


def packed(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...]) -> Tensor:
    bounds = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=query.device)
    return attend(query, key, value, bounds, max(lengths))


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_every_sequence_attends_to_itself_only(lengths: tuple[int, ...], gradients: bool) -> None:
    query, key, value = tokens(lengths, 6), tokens(lengths, 3), tokens(lengths, 3) + 1
    with torch.set_grad_enabled(gradients):
        ours = packed(query, key, value, lengths)
    assert error(ours, plain(query, key, value, lengths)) < 1e-6


def test_the_operator_is_one_that_compilers_may_trust() -> None:
    query, key, value = tokens((5, 3), 6), tokens((5, 3), 3), tokens((5, 3), 3)
    bounds = torch.tensor([0, 5, 8], dtype=torch.int32)
    torch.library.opcheck(packed_attention, (query, key, value, bounds, 5))


def test_company_changes_no_bit_on_a_cpu() -> None:
    lengths = (70, 3, 210, 5)
    parts = tuple(tokens(lengths, heads) for heads in (6, 3, 3))
    with torch.no_grad():
        together = packed(*parts, lengths).split(lengths)
        for n, own in enumerate(zip(*(x.split(lengths) for x in parts), strict=True)):
            assert torch.equal(packed(*own, lengths[n : n + 1]), together[n])


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_groups_hold_every_token_once_with_little_padding(lengths: tuple[int, ...]) -> None:
    groups, places = grouped(lengths, CPU)
    rows = torch.cat([g.rows for g in groups])
    assert rows[places].tolist() == list(range(sum(lengths)))
    valid = torch.cat(
        [(torch.ones(g.shape, dtype=torch.bool) if g.valid is None else g.valid).flatten() for g in groups]
    )
    assert valid.sum() == sum(lengths) and valid[places].all()
    assert sum(g.rows.numel() for g in groups) <= MAX_PADDING * sum(lengths)


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_the_flash_kernel_agrees(lengths: tuple[int, ...]) -> None:
    device = torch.device("cuda")
    query, key, value = (tokens(lengths, heads, device).bfloat16() for heads in (6, 3, 3))
    ours = packed(query, key, value, lengths)
    assert error(ours.cpu(), plain(query, key, value, lengths).cpu()) < 1e-2


@pytest.mark.gpu
def test_company_changes_nothing_in_the_flash_kernel() -> None:
    device, lengths = torch.device("cuda"), (700, 33, 2100, 5)
    query, key, value = (tokens(lengths, heads, device).bfloat16() for heads in (6, 3, 3))
    together = packed(query, key, value, lengths).split(lengths)
    for n, (q, k, v) in enumerate(zip(*(x.split(lengths) for x in (query, key, value)), strict=True)):
        assert torch.equal(packed(q, k, v, lengths[n : n + 1]), together[n])


@pytest.mark.parametrize(
    ("capability", "has"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)]
)
def test_a_gpu_too_old_for_the_flash_kernel_is_known(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], has: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert _has_flash.__wrapped__(torch.device("cuda")) is has


@pytest.mark.parametrize(
    ("capability", "installed", "chosen"),
    [
        ((8, 0), ("flash_attn_interface", "flash_attn", "flash_attn.cute"), None),
        ((9, 0), (), None),
        ((9, 0), ("flash_attn",), None),
        ((9, 0), ("flash_attn_interface", "flash_attn", "flash_attn.cute"), "FA3"),
        ((9, 0), ("flash_attn", "flash_attn.cute"), "FA4"),
        ((10, 0), ("flash_attn_interface", "flash_attn", "flash_attn.cute"), "FA4"),
        ((12, 0), ("flash_attn_interface", "flash_attn", "flash_attn.cute"), None),
    ],
)
def test_the_newest_flash_kernel_that_is_installed_is_used(
    capability: tuple[int, int], installed: tuple[str, ...], chosen: str | None
) -> None:
    assert newest_flash(capability, installed.__contains__) == chosen


@pytest.mark.gpu
def test_a_picture_is_the_same_on_the_gpu() -> None:
    import omnigen2

    here = model(PIPELINE / "checkpoint")
    there = omnigen2.load(str(PIPELINE / "checkpoint"), device="cuda", dtype="float32")
    asked = {"steps": 4, "width": 48, "height": 32, "seed": 3, "output": "latents"}
    assert error(there.generate("a circle", **asked).cpu(), here.generate("a circle", **asked)) < 1e-3


def test_the_norm_learns_as_the_library_norm_does() -> None:
    from omnigen2.network.blocks import RMSNorm

    norm = RMSNorm(16, 1e-5).double()  # the formula is tested: rounding in float32 comes close to any bound
    torch.nn.init.uniform_(norm.weight, 0.5, 2)
    inputs = [tokens((9, 4), 3).double().requires_grad_() for _ in range(2)]
    grad = tokens((4, 9), 3).double()
    ours, theirs = norm(inputs[0]), torch.nn.functional.rms_norm(inputs[1], (16,), norm.weight, 1e-5)
    (own_weight,) = torch.autograd.grad(ours, norm.weight, grad, retain_graph=True)
    (their_weight,) = torch.autograd.grad(theirs, norm.weight, grad, retain_graph=True)
    ours.backward(grad)
    theirs.backward(grad)
    assert error(ours, theirs) < 1e-12 and error(own_weight, their_weight) < 1e-12
    assert error(inputs[0].grad, inputs[1].grad) < 1e-12

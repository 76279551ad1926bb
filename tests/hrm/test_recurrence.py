"""One segment against the published equations, written out again here in plain numpy, and its gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hrm_planted import HRM, SMALL, UNEQUAL_WIDTHS, settings
from numpy.typing import NDArray
from torch import Tensor

from hrm.recurrence import GradientApproximation, Recurrence, residual

TOKENS, ROWS = 5, 3
Array = NDArray[np.float64]


def recurrence(environ: dict[str, str] | None = None, gradient: GradientApproximation = "one_step") -> Recurrence:
    torch.manual_seed(0)
    hrm = settings(environ).hierarchical_reasoning_model
    return Recurrence(hrm.architecture, hrm.hierarchical, TOKENS, gradient=gradient)


def cycles(n: int, t: int) -> dict[str, str]:
    return {f"{HRM}HIERARCHICAL__N_CYCLES": str(n), f"{HRM}HIERARCHICAL__T_TIMESTEPS": str(t)}


def reset(mechanism: str) -> dict[str, str]:
    return {f"{HRM}HIERARCHICAL__RESET_MECHANISM": mechanism}


def state(module: Recurrence, width_x: int, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    z_H, z_L = module.initial_state(ROWS)
    x = torch.randn(ROWS, TOKENS, width_x)
    return torch.randn(z_H.shape), torch.randn(z_L.shape), x


# --- the published model, again, in numpy -------------------------------------------------------------------


def numpy_rms(x: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def numpy_rope(x: Array) -> Array:
    """x [n, d], token by token and pair by pair."""
    tokens, width = x.shape
    turned = np.empty_like(x)
    for position in range(tokens):
        for j in range(width // 2):
            angle = position / 10000 ** (2 * j / width)
            a, b = x[position, j], x[position, j + width // 2]
            turned[position, j] = a * np.cos(angle) - b * np.sin(angle)
            turned[position, j + width // 2] = b * np.cos(angle) + a * np.sin(angle)
    return turned


def numpy_attention(x: Array, qkv: Array, out: Array, heads: int, rotary: bool) -> Array:
    """x [n, w], one row of the batch, one head at a time."""
    width = x.shape[1]
    d = width // heads
    q_rows, k_rows, v_rows = np.split(qkv, 3)
    merged = []
    for head in range(heads):
        rows = slice(head * d, (head + 1) * d)
        q, k, v = x @ q_rows[rows].T, x @ k_rows[rows].T, x @ v_rows[rows].T
        if rotary:
            q, k = numpy_rope(q), numpy_rope(k)
        scores = np.exp(q @ k.T / np.sqrt(d))
        merged.append(scores / scores.sum(-1, keepdims=True) @ v)
    return np.concatenate(merged, -1) @ out.T


def numpy_block(x: Array, weights: dict[str, Array], prefix: str, rotary: bool, heads: int = 4) -> Array:
    attended = [
        numpy_attention(
            row, weights[f"{prefix}attention.qkv.weight"], weights[f"{prefix}attention.out.weight"], heads, rotary
        )
        for row in x
    ]
    x = numpy_rms(x + np.stack(attended))
    gate, up = np.split(x @ weights[f"{prefix}mlp.gate_up.weight"].T, 2, axis=-1)
    return numpy_rms(x + (gate / (1 + np.exp(-gate)) * up) @ weights[f"{prefix}mlp.down.weight"].T)


def numpy_segment(module: Recurrence, z_H: Tensor, z_L: Tensor, x: Tensor, rotary: bool) -> tuple[Array, Array]:
    weights = {name: value.double().numpy() for name, value in module.state_dict().items()}
    H, L, injected = (tensor.double().numpy() for tensor in (z_H, z_L, x))
    for _ in range(module.cycles):
        for _ in range(module.steps):
            L = L + H + injected
            for layer in range(len(module.f_L.blocks)):
                L = numpy_block(L, weights, f"f_L.blocks.{layer}.", rotary)
        H = H + L
        for layer in range(len(module.f_H.blocks)):
            H = numpy_block(H, weights, f"f_H.blocks.{layer}.", rotary)
    return H, L


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_three_segments_are_the_published_model(positions: str) -> None:
    layers = {f"{HRM}ARCHITECTURE__H_LAYERS": "2", f"{HRM}ARCHITECTURE__POSITIONS": positions}
    module = recurrence(layers | cycles(2, 3))
    z_H, z_L, x = state(module, 64)
    H, L = z_H, z_L
    for _ in range(3):
        expected_H, expected_L = numpy_segment(module, H, L, x, positions == "rotary")
        with torch.no_grad():
            H, L = module(H, L, x)
        np.testing.assert_allclose(H.numpy(), expected_H, atol=2e-4)
        np.testing.assert_allclose(L.numpy(), expected_L, atol=2e-4)


def test_there_is_no_projection_where_widths_are_equal() -> None:
    names = {name.split(".")[0] for name, _ in recurrence().named_parameters()}
    assert names == {"f_H", "f_L"}


def test_unequal_widths_are_joined_by_projections() -> None:
    module = recurrence(UNEQUAL_WIDTHS)
    shapes = {name: tuple(value.shape) for name, value in module.named_parameters() if "blocks" not in name}
    assert shapes == {"x_to_L.weight": (32, 24), "H_to_L.weight": (32, 48), "L_to_H.weight": (48, 32)}
    z_H, z_L = module(*state(module, 24))
    assert (z_H.shape, z_L.shape) == ((ROWS, TOKENS, 48), (ROWS, TOKENS, 32))


def test_every_parameter_learns_under_one_step_even_with_unequal_widths_and_a_learned_reset() -> None:
    module = recurrence(UNEQUAL_WIDTHS | reset("learned") | cycles(2, 3))
    z_H, _ = module(*state(module, 24))
    (z_H * torch.randn_like(z_H)).sum().backward()
    still = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


# --- gradients ----------------------------------------------------------------------------------------------


def gradients(module: Recurrence, run: Callable[[Tensor, Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    module.zero_grad()
    z_H, z_L, x = state(module, 64)
    x.requires_grad_()
    out = run(z_H, z_L, x)
    torch.manual_seed(5)
    (out * torch.randn(out.shape)).sum().backward()
    assert x.grad is not None
    return {"x": x.grad} | {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def by_hand(module: Recurrence, with_gradient: Callable[[int, int], bool]) -> Callable[..., Tensor]:
    """The loop written out; `with_gradient(cycle, step)` says which f_L count (step T is the f_H)."""

    def run(z_H: Tensor, z_L: Tensor, x: Tensor) -> Tensor:
        for cycle in range(module.cycles):
            for step in range(module.steps):
                z_L = module.f_L(z_L, z_H + x)
                z_L = z_L if with_gradient(cycle, step) else z_L.detach()
            z_H = module.f_H(z_H, z_L)
            z_H = z_H if with_gradient(cycle, module.steps) else z_H.detach()
        return z_H

    return run


@pytest.mark.parametrize("gradient", ["one_step", "last_cycle", "full_bptt"])
def test_gradients_are_those_of_the_calls_that_should_carry_one(gradient: GradientApproximation) -> None:
    n, t = 2, 3
    counts = {
        "one_step": lambda cycle, step: cycle == n - 1 and step >= t - 1,
        "last_cycle": lambda cycle, step: cycle == n - 1,
        "full_bptt": lambda cycle, step: True,
    }
    module = recurrence(cycles(n, t), gradient)
    ours = gradients(module, lambda *z: module(*z)[0])
    expected = gradients(module, by_hand(module, counts[gradient]))
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_the_three_approximations_differ() -> None:
    found = []
    for gradient in ("one_step", "last_cycle", "full_bptt"):
        module = recurrence(cycles(2, 2), gradient)  # type: ignore[arg-type]  # a tuple of literals is inferred as str
        found.append(gradients(module, lambda *z, module=module: module(*z)[0])["f_L.blocks.0.mlp.down.weight"])
    assert (found[0] - found[1]).norm() > 0.01 * found[1].norm()
    assert (found[1] - found[2]).norm() > 0.01 * found[2].norm()


def saved_bytes(n: int, t: int, gradient: GradientApproximation) -> int:
    """What autograd keeps for the backward pass of one segment: the training memory that could grow."""
    module = recurrence(SMALL | cycles(n, t), gradient)
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(*state(module, 16))
    return kept


def test_one_step_memory_does_not_grow_with_cycles_or_steps_and_full_backpropagation_does() -> None:
    assert saved_bytes(1, 2, "one_step") == saved_bytes(2, 2, "one_step") == saved_bytes(4, 6, "one_step")
    assert saved_bytes(2, 3, "last_cycle") == saved_bytes(5, 3, "last_cycle") < saved_bytes(2, 6, "last_cycle")
    assert saved_bytes(4, 6, "full_bptt") > 3 * saved_bytes(2, 2, "full_bptt")


# --- resets and initial states ------------------------------------------------------------------------------


def test_a_hard_reset_forgets_the_incoming_low_level_state_after_the_first_cycle() -> None:
    calls: list[Tensor] = []
    module = recurrence(reset("hard") | cycles(3, 1))
    module.f_L.register_forward_pre_hook(lambda _, args: calls.append(args[0]))
    module(*state(module, 64))
    assert not torch.equal(calls[0], module.L_init.expand_as(calls[0]))
    for z_L in calls[1:]:
        assert torch.equal(z_L, module.L_init.expand_as(z_L))


def test_a_learned_reset_reaches_soft_and_hard_at_its_ends() -> None:
    learned, soft, hard = (recurrence(reset(kind)) for kind in ("learned", "soft", "hard"))
    for other in (soft, hard):
        other.load_state_dict(learned.state_dict(), strict=False)
    assert learned.reset_gate is not None
    inputs = state(learned, 64)
    for bias, other in ((50.0, soft), (-50.0, hard)):
        torch.nn.init.constant_(learned.reset_gate.bias, bias)
        with torch.no_grad():
            torch.testing.assert_close(learned(*inputs)[0], other(*inputs)[0], atol=1e-5, rtol=1e-5)


def test_initial_states_are_saved_but_never_trained() -> None:
    module = recurrence()
    assert {"H_init", "L_init"} <= module.state_dict().keys()
    assert not {"H_init", "L_init"} & {name for name, _ in module.named_parameters()}
    z_H, z_L = module.initial_state(2)
    assert torch.equal(z_H[1, 3], module.H_init)
    assert torch.equal(z_L[0, 0], module.L_init)


def test_the_residual_is_the_relative_change_of_each_row() -> None:
    before = torch.ones(2, 4, 8)
    after = before.clone()
    after[1] *= 1.5
    np.testing.assert_allclose(residual(before, after), [0.0, 0.5], atol=1e-6)

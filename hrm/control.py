"""The controls: plain transformers, which tell what reasoning in depth adds.

One segment of the recurrence with one cycle and one step, from its fixed initial states, is a plain transformer of
l_layers + h_layers blocks with its exact gradient (nothing is left out of it):

    z_L = f_L(L_init + H_init + x),   z_H = f_H(H_init + z_L)

So a control is the same model under other settings: same input and output networks, trainer and objective.
"""

from __future__ import annotations

from core.settings import Settings


def same_size(settings: Settings) -> Settings:
    """The HRM's own blocks, each run through once: exactly its parameters."""
    return _one_pass(settings, l_layers=1, h_layers=1)


def same_compute(settings: Settings) -> Settings:
    """As many blocks, each with weights of its own, as one segment of the HRM runs through: N T l + N h."""
    depth = settings.hierarchical_reasoning_model.hierarchical
    return _one_pass(settings, l_layers=depth.N_cycles * depth.T_timesteps, h_layers=depth.N_cycles)


def block_passes(settings: Settings) -> int:
    """Blocks one segment runs through."""
    hrm = settings.hierarchical_reasoning_model
    cycles, steps = hrm.hierarchical.N_cycles, hrm.hierarchical.T_timesteps
    return cycles * (steps * hrm.architecture.l_layers + hrm.architecture.h_layers)


def _one_pass(settings: Settings, *, l_layers: int, h_layers: int) -> Settings:
    """Settings of a model that decides in one pass; the layer counts are multiples of the HRM's."""
    hrm = settings.hierarchical_reasoning_model
    layers = {
        "l_layers": l_layers * hrm.architecture.l_layers,
        "h_layers": h_layers * hrm.architecture.h_layers,
    }
    one_segment = {"min_segments": 1, "max_segments": 1, "halting": "single_head"}  # no bootstrap: nothing lies ahead
    changed = hrm.model_copy(
        update={
            "architecture": hrm.architecture.model_copy(update=layers),
            "hierarchical": hrm.hierarchical.model_copy(update={"N_cycles": 1, "T_timesteps": 1}),
            "act": hrm.act.model_copy(update=one_segment),
        }
    )
    supervision = settings.deep_supervision.model_copy(update={"max_supervision_segments": 1})
    return settings.model_copy(update={"hierarchical_reasoning_model": changed, "deep_supervision": supervision})

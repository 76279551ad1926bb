"""Settings of stored models. Some of the design document's keys leave no choice here: what they name is fixed."""

from __future__ import annotations

from typing import Literal

from pydantic import ValidationInfo, field_validator

from core.section import Count, Section

# By key: the value, the design document's word for it, and what to do where another one was meant.
FIXED: dict[str, tuple[object, object, str]] = {
    "hrm_model_path": (
        "models/hrm",
        "models/hrm_trading_model.pth",
        "a model is a folder of signed versions below paths.state_dir, never a pickle; move it with paths.state_dir",
    ),
    "best_model_metric": (
        "regret_bps",
        "hierarchical_efficiency",
        "the best weights are those of the least regret (docs/adr/0006-judged-by-regret.md); leave it at regret_bps",
    ),
    "model_versioning": (True, True, "a version is never overwritten; leave it at true and delete what is not needed"),
}


class ModelManagement(Section):
    """The design document's own values are read as what is here in their place (`FIXED`); others are refused."""

    hrm_model_path: Literal["models/hrm"]
    checkpoint_frequency: Count
    best_model_metric: Literal["regret_bps"]
    model_versioning: Literal[True]

    @field_validator(*FIXED, mode="before")
    @classmethod
    def _fixed(cls, given: object, about: ValidationInfo) -> object:
        value, word, remedy = FIXED[str(about.field_name)]
        if given not in (value, word):
            raise ValueError(f"can only be {value}: {remedy}")
        return value

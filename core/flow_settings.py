"""Settings of flows: where their tasks run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from core.delivery_settings import EnvironmentName
from core.section import Section


class Flows(Section):
    task_runner: Literal["threads", "dask", "ray"] = Field(description="of sweeps and of walk-forward folds")
    study_url_env: EnvironmentName | None = Field(default=None, description="the variable that holds its address")

"""The registry follows the store and the rollout (flows/registry.py), on a schedule."""

from __future__ import annotations

from typing import Any

from prefect import flow

from core.settings import load_settings
from flows.registry import project


@flow(name="registry_sync", timeout_seconds=600)
def registry_sync() -> dict[str, Any]:
    """Register what was published, and point champion and challenger at who decides now."""
    return project(load_settings())

"""One thread per library (two shared cores spin badly) and no deadlines in property tests (machines are noisy)."""

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import structlog
from command_line import hrm
from databases import place, postgres
from hypothesis import settings

__all__ = ["hrm", "place", "postgres"]  # fixtures

settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")

# Files of half a minute and more, whole as workers take them: begun last, one of them would keep a single worker busy.
LONG = (
    "test_readme.py",
    "test_migration_live.py",
    "test_openapi.py",
    "test_serving_bench.py",
    "test_variants.py",
    "test_outbox.py",
    "test_export_portable.py",
    "test_workers.py",
    "test_outcomes.py",
    "test_tracing.py",
    "test_drill.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; the others as they lie (`--no-loadscope-reorder`: not by how many tests they have)."""
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command that a test runs in this process sets the level of its log; the next test reads its own lines."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)

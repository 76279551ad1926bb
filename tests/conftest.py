"""One thread per library (two shared cores spin badly) and no deadlines in property tests (machines are noisy)."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")

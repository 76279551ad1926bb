"""The paper loop as a process of its own, for tests that kill it: paper_worker.py URL STATE_DIR BARS_PER_S."""

from __future__ import annotations

import sys

from core.settings import load_settings
from trading.paper_replay import run_paper
from trading.service import DecisionClient
from trading.synthetic import simulate


def main(url: str, state_dir: str, bars_per_s: str) -> None:
    settings = load_settings(preset="compact", environ={"HRM_PATHS__STATE_DIR": state_dir})
    law = settings.synthetic_market.model_copy(update={"bars_per_session": 30})
    run_paper(
        simulate(law, sessions=10, seed=3).bars,
        settings,
        DecisionClient(url, "token"),
        bars_per_s=float(bars_per_s),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A process that moves the rollout for ever: `state_writer.py FILE`. Prints each version after its commit."""

import itertools
import sys
import time
from pathlib import Path

from core.errors import RolloutError
from core.settings import Rollout
from serving.rollout import RolloutStore
from serving.transitions import Change, Command, Phase


def main() -> None:
    store = RolloutStore(Path(sys.argv[1]), Rollout(steps=(50, 100), salt="s", cool_down_s=0.0))
    for number in itertools.count(time.time_ns()):
        state = store.read()
        command = Command.PAUSE if state.phase in (Phase.SHADOW, Phase.CANARY) else Command.START
        command = Command.ROLLBACK if state.paused else command
        change = Change(command, time.time(), champion="ppo/v1", challenger=f"hrm/v{number}")
        try:
            sys.stdout.write(f"{store.apply(change).version}\n")
            sys.stdout.flush()
        except RolloutError as error:
            if error.code not in ("stale_version", "invalid_transition", "paused", "cool_down"):  # the other was faster
                raise


if __name__ == "__main__":
    main()

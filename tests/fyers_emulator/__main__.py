"""`python -m tests.fyers_emulator --port 0`: prints its address, then serves until its standard input ends or a signal.

The first is so that it never outlives the test that started it, whatever becomes of that.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import threading

from tests.fyers_emulator.server import address, bound, serve


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fyers_emulator", description="Fyers on loopback.")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--until-stdin-ends", action="store_true", help="for a process that is started by another")
    arguments = parser.parse_args()
    listener = bound(arguments.port)
    sys.stdout.write(f"{address(listener)}\n")
    sys.stdout.flush()
    if arguments.until_stdin_ends:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    asyncio.run(serve(listener))


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()

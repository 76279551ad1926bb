"""Blocking calls beside the event loop: name resolution, databases, SMTP.

asyncio's own pool is not for them: its few threads also read the rollout's state, and a process waits for them when it
ends. A call that hangs here holds up neither; it takes up one of its owner's few places, and that is all.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from core.errors import DataError

Result = TypeVar("Result")
AT_ONCE = 8


class Aside:
    """At most so many calls at a time, each in a daemon thread of its own."""

    def __init__(self, what: str, at_once: int = AT_ONCE) -> None:
        self._what = what
        self._places = threading.BoundedSemaphore(at_once)

    async def run(self, call: Callable[[], Result]) -> Result:
        """What `call` returns or raises. Cancelled, the call goes on unheard. DataError while too many others hang."""
        if not self._places.acquire(blocking=False):
            raise DataError(f"{self._what}: too many earlier calls hang; see what they wait for", retryable=True)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Result] = loop.create_future()

        def work() -> None:
            try:
                result = call()
            except Exception as error:  # whatever it is, it is raised where it is awaited
                _tell(loop, answer, answer.set_exception, error)
            else:
                _tell(loop, answer, answer.set_result, result)
            finally:
                self._places.release()

        try:
            threading.Thread(target=work, name=f"aside-{self._what}", daemon=True).start()
        except RuntimeError as error:  # the machine gives no more threads
            self._places.release()
            raise DataError(f"{self._what}: {error}", retryable=True) from None
        return await answer


def _tell(
    loop: asyncio.AbstractEventLoop, answer: asyncio.Future[Any], settle: Callable[[Any], None], value: Any
) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(lambda: None if answer.done() else settle(value))

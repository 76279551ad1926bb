"""Messages that nobody waits for: notifications, and webhooks that are only told.

Each recipient has a bounded queue and one message on its way: the most severe first, of those the oldest. A full queue
drops the oldest of what is least severe. What fails is tried again, later and later, unless the recipient refused
it for good. Nothing here raises or waits, so it may be called from anywhere on the event loop, an abort included.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import IntEnum

import structlog

from core.errors import HrmSystemError

log = structlog.get_logger()

MOST_WAITING = 256  # per recipient
FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 60.0
GIVE_UP_AFTER_S = 3600.0
CLOSE_WITHIN_S = 1.0


class Severity(IntEnum):
    INFO = 0
    WARNING = 1
    CRITICAL = 2


@dataclass(frozen=True, eq=False)
class Message:
    """`send` raises an HrmSystemError where it fails, and says by `retryable` whether to try again."""

    what: str  # for the log: no secrets
    severity: Severity
    send: Callable[[], Awaitable[None]] = field(repr=False)
    put_at: float = field(default_factory=time.monotonic)


class Sender:
    """Used on one event loop."""

    def __init__(
        self,
        *,
        most_waiting: int = MOST_WAITING,
        first_retry_s: float = FIRST_RETRY_S,
        give_up_after_s: float = GIVE_UP_AFTER_S,
    ) -> None:
        self._most_waiting = most_waiting
        self._first_retry_s = first_retry_s
        self._give_up_after_s = give_up_after_s
        self._waiting: dict[str, list[Message]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.sent = 0
        self.dropped = 0  # by full queues, by refusals, by age

    def put(self, recipient: str, message: Message) -> None:
        queue = self._waiting.setdefault(recipient, [])
        queue.append(message)
        if len(queue) > self._most_waiting:
            self._drop(recipient, min(queue, key=lambda waiting: waiting.severity), "the queue is full")
        if recipient not in self._tasks:
            self._tasks[recipient] = asyncio.get_running_loop().create_task(self._drain(recipient))

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    async def close(self, within_s: float = CLOSE_WITHIN_S) -> None:
        """Wait a little for what is on its way; what is left then is logged and lost."""
        tasks = list(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=within_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.waiting:
            log.warning("messages_unsent", count=self.waiting, recipients=sorted(self._waiting))
        self._waiting.clear()
        self._tasks.clear()

    async def _drain(self, recipient: str) -> None:
        queue, retry_s, trouble = self._waiting[recipient], self._first_retry_s, ""
        while queue:
            message = max(queue, key=lambda waiting: waiting.severity)
            failure = await self._attempt(recipient, message)
            if failure and failure != trouble:
                log.warning(
                    "message_not_sent", recipient=recipient, what=message.what, error=failure, remedy="retrying"
                )
            trouble = failure
            if failure:
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, LONGEST_RETRY_S)
            else:
                retry_s = self._first_retry_s
        del self._waiting[recipient], self._tasks[recipient]

    async def _attempt(self, recipient: str, message: Message) -> str:
        """Why it is to be tried again, in words; empty when it is done with."""
        try:
            await message.send()
        except HrmSystemError as error:
            old = time.monotonic() - message.put_at > self._give_up_after_s
            if error.retryable and not old:
                return str(error)
            self._drop(recipient, message, str(error))
        except Exception as error:  # a message that cannot even be made must not keep the others from going out
            self._drop(recipient, message, f"{type(error).__name__}: {error}")
        else:
            self.sent += 1
            self._forget(recipient, message)
        return ""

    def _drop(self, recipient: str, message: Message, why: str) -> None:
        self.dropped += 1
        self._forget(recipient, message)
        log.warning("message_dropped", recipient=recipient, what=message.what, error=why, dropped=self.dropped)

    def _forget(self, recipient: str, message: Message) -> None:
        """Unless a full queue has forgotten it meanwhile."""
        queue = self._waiting[recipient]
        if message in queue:
            queue.remove(message)

"""The error tree. Expected outcomes (a gate verdict, a risk reject) are values, not exceptions.

HrmSystemError
├── ConfigError    a human must act; refuse to start
├── DataError      bad bar, NaN, gap, stale feed: skip the tick, HOLD
├── ModelError     not found, digest mismatch, incompatible schema, bad output: champion, else HOLD
├── BrokerError    unavailable (retryable), rejected, unknown outcome (reconcile, never resend)
└── RolloutError   invalid transition, stale version, gate failed
"""

from __future__ import annotations


class HrmSystemError(Exception):
    """Base of every error this system raises on purpose.

    The message names the place (file, line, field) and the remedy; `code` is stable and machine-readable.
    """

    code = "hrm_error"
    retryable = False

    def __init__(self, message: str, *, code: str | None = None, retryable: bool | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        if retryable is not None:
            self.retryable = retryable


class ConfigError(HrmSystemError):
    code = "config_error"


class DataError(HrmSystemError):
    code = "data_error"


class ModelError(HrmSystemError):
    code = "model_error"


class BrokerError(HrmSystemError):
    code = "broker_error"


class RolloutError(HrmSystemError):
    code = "rollout_error"

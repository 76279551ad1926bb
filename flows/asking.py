"""How a command asks the running service: with the state directory's token, or with a key that was named."""

from __future__ import annotations

import time
from pathlib import Path

from core.errors import ConfigError
from core.settings import Settings
from serving.calls import Answer, Call, ServiceError
from serving.client import ServiceClient
from serving.local_token import read_or_create_token

SERVICE_WAIT_S = 10.0  # a service that was started a moment ago is given time to warm its models
AGAIN_S = 0.2


def service_url(settings: Settings) -> str:
    return settings.serving.url


def client_of(settings: Settings, key: Path | None = None) -> ServiceClient:
    """`key`: a file with an API key. Raises ConfigError if it cannot be read."""
    if key is None:
        return ServiceClient(service_url(settings), read_or_create_token(settings.paths.state_dir))
    try:
        return ServiceClient(service_url(settings), key)
    except (OSError, UnicodeDecodeError) as error:
        remedy = "`hrm keys create NAME --scope rollout:approve` shows a key once: write it there"
        raise ConfigError(f"{key}: no readable key ({error}); {remedy}", code="no_such_file") from None


def ask(settings: Settings, call: Call[Answer], key: Path | None = None) -> Answer:
    """The service's answer; one that was started a moment ago is waited for. Raises ServiceError and ConfigError."""
    deadline = time.monotonic() + SERVICE_WAIT_S
    with client_of(settings, key) as client:
        while True:
            try:
                return client.call(call)
            except ServiceError as error:
                if error.status or not error.unsent:  # only what was never sent is safe to ask again, whatever it is
                    raise
                if time.monotonic() > deadline:
                    message = f"no service answers at {service_url(settings)} ({error}); start it with `hrm serve`"
                    raise ConfigError(message, code="no_service") from None
                time.sleep(AGAIN_S)

"""The settings' `delivery` section: whom a rollout may ask, and who is told about it.

No secret stands here: settings are printed and logged. `core.settings_file.secret` says where secrets are.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from core.section import Positive, Section

SeverityName = Literal["info", "warning", "critical"]
Host = Annotated[
    str, Field(pattern=r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(:\d{1,5})?$")
]  # name, name:port, [::1]:port
EnvironmentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Mailbox = Annotated[str, Field(pattern=r"^[^\s@<>,;\"]+@[^\s@<>,;\"]+$")]


class NotificationWebhook(Section):
    name: str = Field(min_length=1)
    url_env: EnvironmentName = Field(description="the variable that holds the URL: with many receivers it is a secret")
    min_severity: SeverityName


class Email(Section):
    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)
    tls: Literal["starttls", "implicit", "none"]
    user: str | None = Field(default=None, description="its password: HRM_SMTP_PASSWORD or HRM_SMTP_PASSWORD_FILE")
    sender: Mailbox
    recipients: tuple[Mailbox, ...] = Field(min_length=1)
    min_severity: SeverityName

    @model_validator(mode="after")
    def _no_password_in_clear(self) -> Email:
        if self.user is not None and self.tls == "none":
            raise ValueError("a user's password is not sent in clear; set tls to starttls or implicit, or user to null")
        return self


class Notifications(Section):
    dedupe_s: Positive
    webhooks: tuple[NotificationWebhook, ...]
    email: Email | None


class DeliverySettings(Section):
    allowed_hosts: tuple[Host, ...]
    private_networks: bool
    notifications: Notifications

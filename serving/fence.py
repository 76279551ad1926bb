"""If-Match (RFC 9110, 13.1.1): a command that is carried out only at the version its sender has read.

The entity tag of the rollout is its version, quoted: `ETag: "7"` of an answer is the `If-Match: "7"` of a command.
"""

from __future__ import annotations

import re

from starlette.requests import Request

from core.errors import DataError, RolloutError

IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "pattern": '^"[0-9]{1,18}"$'},
    "description": 'the version that was read, quoted as in its ETag: `"7"`. Another one is current: 412',
}
_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_TAGS = re.compile(rf"\s*{_TAG}(?:\s*,\s*{_TAG})*\s*")


def etag(version: int) -> str:
    return f'"{version}"'


def if_match(request: Request) -> frozenset[str] | None:
    """The entity tags of If-Match; None if any version will do. Raises DataError for what is none."""
    values = request.headers.getlist("if-match")
    text = ",".join(values)
    if not values or text.strip() == "*":
        return None
    if not _TAGS.fullmatch(text):
        raise DataError('If-Match: no entity tag; write the version in quotes: If-Match: "7"', code="request_invalid")
    return frozenset(re.findall(_TAG, text))


def require(tags: frozenset[str], version: int | None, current: int) -> int:
    """The current version, if it is among the tags; a weak one matches nothing.

    `version` is what the body says. Raises DataError if it contradicts the tags, RolloutError (412) if they are stale.
    """
    if version is not None and etag(version) not in tags:
        raise DataError(
            f"If-Match says {', '.join(sorted(tags))} and the body's version {version}; give one of them, or the same",
            code="request_invalid",
        )
    if etag(current) not in tags:
        raise stale(current)
    return current


def stale(current: int) -> RolloutError:
    return RolloutError(
        f"the rollout changed meanwhile (now version {current}); read it and decide again", code="precondition_failed"
    )

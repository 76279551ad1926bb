"""HTTP to others: metric providers, webhooks, notification targets. The one place that connects anywhere.

A plan names URLs, and whoever may write a plan must not thereby reach what only this machine can (OWASP API7). So:
hosts of an allow-list only; names are resolved first, all of their addresses must be permitted, and the connection
goes to such an address and not to a name that may resolve differently the next time. httpx's transport is used, not
its client: no redirects, no cookies, no proxies or .netrc from the environment, no log line with the URL.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import httpx

from core.delivery_settings import DeliverySettings
from core.errors import DataError
from delivery.aside import Aside

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MOST_BYTES = 256 * 1024  # of an answer
SHOWN = 200  # characters of an answer that says no
PORTS = {"http": 80, "https": 443}
RETRYABLE = {408, 425, 429}  # and everything from 500


class Outbound:
    """Requests within limits. One for a process, used on its event loop."""

    def __init__(self, settings: DeliverySettings) -> None:
        self._allowed = frozenset(host.lower() for host in settings.allowed_hosts)
        self._private_networks = settings.private_networks
        self._resolving = Aside("name resolution")
        # No connection is kept: connections are known by address, and two names of one address must not share any.
        self._http = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_keepalive_connections=0))

    def require_allowed(self, url: str) -> httpx.URL:
        """Raises DataError (code `outbound_refused`) for what is never connected to, whatever it resolves to."""
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise _refused(f"not a URL ({error})") from None
        if parsed.scheme not in PORTS or not parsed.raw_host or not 0 < _port(parsed) < 65536:
            raise _refused("a URL here begins with http:// or https:// and a host, perhaps with a port below 65536")
        if parsed.userinfo:
            raise _refused(f"{parsed.host}: no credentials in a URL, which is on record")
        host = parsed.raw_host.decode("ascii")
        host = f"[{host}]" if ":" in host else host
        if self._allowed.isdisjoint({host, f"{host}:{_port(parsed)}"}):
            raise _refused(f"{host}:{_port(parsed)} is not in delivery.allowed_hosts; add it there if it should be")
        return parsed

    async def get(self, url: str, *, timeout_s: float) -> bytes:
        """The body of a 2xx answer. DataError otherwise: `retryable` unless asking again cannot help."""
        return await self._request("GET", url, {}, b"", timeout_s)

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], *, timeout_s: float) -> bytes:
        """The same for a JSON body."""
        return await self._request("POST", url, {**headers, "Content-Type": "application/json"}, body, timeout_s)

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _request(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes, timeout_s: float
    ) -> bytes:
        target = self.require_allowed(url)
        fields = {"Accept-Encoding": "identity", "User-Agent": "hrm-delivery", **headers}  # identity: no zip bombs
        request = httpx.Request(method, target, headers=fields, content=content)
        try:
            async with asyncio.timeout(timeout_s):
                addresses = await self._addresses(target)
                request.extensions["timeout"] = {"connect": timeout_s / len(addresses)}
                return await self._send(request, addresses)
        except TimeoutError:
            raise _unanswered(target, f"no answer within {timeout_s:g} s") from None
        except (httpx.TransportError, OSError, UnicodeError) as error:  # the last of names that cannot be one
            raise _unanswered(target, f"no answer ({type(error).__name__}: {error})") from None

    async def _addresses(self, target: httpx.URL) -> list[str]:
        """Where to connect to, in the resolver's order. Raises DataError if one of them is not permitted."""
        host, port = target.raw_host.decode("ascii"), _port(target)
        found = await self._resolving.run(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        addresses = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))
        for address in addresses:
            if not permitted(address, private_networks=self._private_networks):
                raise _refused(
                    f"{host} is {address}, which is not connected to; private addresses need "
                    f"delivery.private_networks, link-local ones are never permitted"
                )
        return addresses

    async def _send(self, request: httpx.Request, addresses: list[str]) -> bytes:
        for address in addresses[:-1]:
            try:
                return await self._send_to(address, request)
            except (httpx.ConnectError, httpx.ConnectTimeout):  # nothing was sent: the next address may listen
                continue
        return await self._send_to(addresses[-1], request)

    async def _send_to(self, address: str, request: httpx.Request) -> bytes:
        """The URL names the address; the Host header and the certificate's name stay those of the host."""
        pinned = httpx.Request(
            request.method,
            request.url.copy_with(host=address),
            headers=request.headers,
            content=request.content,
            extensions={**request.extensions, "sni_hostname": request.url.raw_host.decode("ascii")},
        )
        response = await self._http.handle_async_request(pinned)
        try:
            return _accepted(request.url, response, await _body(request.url, response))
        finally:
            await response.aclose()


def permitted(address: str, *, private_networks: bool) -> bool:
    """Public and loopback addresses; private ones if so set; of IPv6 that carries IPv4, what it carries."""
    ip: Address = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip.sixtofour or ip
    if ip.is_loopback:
        return True
    if ip.is_link_local or ip.is_multicast or ip.is_reserved or ip.is_unspecified:
        return False
    return ip.is_global or private_networks


async def _body(target: httpx.URL, response: httpx.Response) -> bytes:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise _unanswered(target, "the answer is compressed, though that was not asked for")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MOST_BYTES:
            raise _unanswered(target, f"the answer is larger than {MOST_BYTES // 1024} KiB; ask for less")
    return bytes(body)


def _accepted(target: httpx.URL, response: httpx.Response, body: bytes) -> bytes:
    if response.is_success:
        return body
    status = response.status_code
    text = " ".join(body[: 4 * SHOWN].decode("utf-8", "replace").split())[:SHOWN]
    said = "redirects are not followed" if response.is_redirect else "".join(filter(str.isprintable, text))
    raise DataError(
        f"{_origin(target)}: HTTP {status}: {said}",
        code="outbound_refused_there",
        retryable=status in RETRYABLE or status >= 500,
    )


def _port(url: httpx.URL) -> int:
    return PORTS[url.scheme] if url.port is None else url.port


def _origin(url: httpx.URL) -> str:
    """What may be shown: paths and queries of webhooks are secrets with many receivers."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


def _refused(why: str) -> DataError:
    return DataError(why, code="outbound_refused")


def _unanswered(target: httpx.URL, why: str) -> DataError:
    return DataError(f"{_origin(target)}: {why}", code="outbound_unanswered", retryable=True)

"""One HTTP request that ends: in a whole reply of bounded size, or in one line, by a deadline that no server can move.

Certificates are verified, redirects are not followed: one would carry the key to another address. Of the environment a
proxy (`HTTPS_PROXY`, `NO_PROXY`) and certificates (`SSL_CERT_FILE`) are taken for https only, where a proxy sees no
header; plain http goes straight to its address.
"""

import asyncio
import logging
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

MOST_BYTES = 4 << 20


@dataclass(frozen=True)
class Reply:
    """`retry_after`: that header, '' where there is none. Nothing else of the headers is kept."""

    status: int
    body: bytes
    retry_after: str = ""


class Unanswered(Exception):
    """There is no whole reply; the message says why. It stands alone: what caused it may hold what the server sent."""


def post(url: str, body: bytes, headers: Mapping[str, str], seconds: float) -> Reply:
    """The reply to a POST, whatever its status.

    Args:
        seconds: for all of it, from finding the address to the reply's last byte.

    Raises:
        Unanswered: not in time, not in HTTP, larger than `MOST_BYTES`, or nobody is there.
    """
    import httpx2

    _quiet()
    try:
        return asyncio.run(_post(url, body, headers, seconds))
    except TimeoutError:
        fault = f"timed out: no whole reply in {seconds:g} s"
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        fault = _line(error)
    except _TooLarge:
        fault = f"its reply is larger than {MOST_BYTES >> 20} MiB"
    raise Unanswered(fault)


async def _post(url: str, body: bytes, headers: Mapping[str, str], seconds: float) -> Reply:
    import httpx2

    # No compression: a small body could become a large one.
    headers = {"Accept-Encoding": "identity", "Connection": "close", **headers}
    client = httpx2.AsyncClient(timeout=None, follow_redirects=False, trust_env=url.startswith("https:"))
    async with asyncio.timeout(seconds), client, client.stream("POST", url, content=body, headers=headers) as response:
        received = bytearray()
        async for chunk in response.aiter_raw():
            received += chunk
            if len(received) > MOST_BYTES:
                raise _TooLarge
        return Reply(response.status_code, bytes(received), response.headers.get("Retry-After", ""))


class _TooLarge(Exception):
    """More than anybody needs."""


def _quiet() -> None:
    """What these libraries log holds headers and the reason phrase, as they came."""
    for name in ("httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _line(error: BaseException) -> str:
    """The error's own words and those of what it began with: `All connection attempts failed` says little."""
    first = error
    while (earlier := first.__cause__ or first.__context__) is not None:
        first = earlier
    return ": ".join(dict.fromkeys([_words(error), _words(first)]))


def _words(error: BaseException) -> str:
    """asyncio says `Connect call failed` of a refused connection, and of every other one."""
    if isinstance(error, OSError) and (error.errno or 0) > 0 and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno or 0)
    return str(error) or type(error).__name__

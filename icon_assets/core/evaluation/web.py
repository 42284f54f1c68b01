"""One HTTP request that always ends by a deadline, with a whole reply of bounded size or an error in one line.

Certificates are verified. Redirects are not followed, because they would carry the key to a different address. A proxy
(`HTTPS_PROXY`, `NO_PROXY`) and certificates (`SSL_CERT_FILE`) from the environment are used for https only, where a
proxy sees no headers. Plain http goes directly to its address.
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
    """`retry_after`: that header, '' if there is none. Other headers are not kept."""

    status: int
    body: bytes
    retry_after: str = ""


class Unanswered(Exception):
    """There is no whole reply; the message says why. It has no cause attached, because that may contain text of the
    server."""


def post(url: str, body: bytes, headers: Mapping[str, str], seconds: float) -> Reply:
    """The reply to a POST, with any status.

    Args:
        seconds: limit for the whole request, from finding the address to the last byte of the reply.

    Raises:
        Unanswered: timed out, not HTTP, larger than `MOST_BYTES`, or no server.
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
    """Larger than any valid reply."""


def _quiet() -> None:
    """The logs of these libraries contain headers and the reason phrase as received."""
    for name in ("httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _line(error: BaseException) -> str:
    """The messages of the error and of its first cause, because `All connection attempts failed` says little."""
    first = error
    while (earlier := first.__cause__ or first.__context__) is not None:
        first = earlier
    return ": ".join(dict.fromkeys([_words(error), _words(first)]))


def _words(error: BaseException) -> str:
    """asyncio reports `Connect call failed` for refused connections and for all other failures."""
    if isinstance(error, OSError) and (error.errno or 0) > 0 and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno or 0)
    return str(error) or type(error).__name__

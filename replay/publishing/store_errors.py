"""Errors of object stores' clients as one line: what is wrong, where, and what to do.

The clients have no error in common. What tells is the HTTP status, the store's own code where there is one, and the
name of the client's class; texts of clients are not repeated, for some hold a signed URL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from capture.errors import UserError
from replay.publishing.addresses import Address

#: Where each client looks for credentials, as the user reads it.
CREDENTIALS: Final = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role",
    "oss": "OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or a service account",
}
_NO_CREDENTIALS: Final = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError", "TokenRetrievalError"}
)
_UNREACHABLE: Final = frozenset(
    {
        "EndpointConnectionError",
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "ConnectionClosedError",
        "HTTPClientError",
        "RequestError",
        "ClientConnectorError",
        "ClientConnectionError",
        "ServerDisconnectedError",
        "FSTimeoutError",
        "TransportError",
        "SSLError",
    }
)
#: What the clients say of variables and profiles before they ask any store.
_SETTINGS: Final = frozenset(
    {"ProfileNotFound", "InvalidRegionError", "ConfigParseError", "InvalidConfigError", "UnknownRegionError"}
)
_DENIED: Final = frozenset(
    {
        "AccessDenied",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "ExpiredToken",
        "InvalidSecurityToken",
        "SecurityTokenExpired",
        "Forbidden",
        "AllAccessDisabled",
        "InvalidToken",
    }
)


def no_bucket(address: Address) -> UserError:
    """The bucket of a URL is not there."""
    return UserError(f"{address}: no bucket {address.bucket}; create it, or name another")


@contextmanager
def told(address: Address, doing: str) -> Iterator[None]:
    """Turn what a client raises inside into UserError; FileNotFoundError where one key is not there. ``doing`` is what
    could not be done, as an infinitive."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if _is_local(error):
            raise
        raise _translated(error, address, doing) from None


def _is_local(error: BaseException) -> bool:
    """A disk that is full, a file that is not ours: with an errno and a file name, and no client behind it."""
    return isinstance(error, OSError) and error.__cause__ is None and error.errno is not None and bool(error.filename)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(8):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _translated(error: BaseException, address: Address, doing: str) -> Exception:
    chain = list(_chain(error))
    names = {kind.__name__ for one in chain for kind in type(one).__mro__}
    codes = {code for one in chain for code in _codes(one)} - {""}
    where = str(address)
    bucket = f"{address.scheme}://{address.bucket}"
    if "NoSuchBucket" in codes | names:
        return no_bucket(address)
    if names & _NO_CREDENTIALS:
        return UserError(f"{where}: no credentials; set {CREDENTIALS[address.scheme]}")
    if isinstance(error, PermissionError) or codes & _DENIED or codes & {"401", "403"} or names & _DENIED:
        said = "".join(f" ({code})" for code in sorted(codes & _DENIED)[:1])
        return UserError(
            f"{where}: access denied{said}: cannot {doing}; let the credentials in the environment read, write, list"
            f" and delete in {bucket}"
        )
    if isinstance(error, FileNotFoundError) or codes & {"404", "NoSuchKey", "NotFound"}:
        return FileNotFoundError(where)
    if names & _UNREACHABLE or isinstance(error, asyncio.TimeoutError | ConnectionError):
        return UserError(f"{where}: the store cannot be reached to {doing}; is the endpoint right, and the network up?")
    # Of an endpoint that is no URL botocore says ValueError.
    if not codes and (names & _SETTINGS or type(error) is ValueError):
        return UserError(
            f"{where}: cannot {doing}: the client does not take its settings ({type(error).__name__}); are endpoint,"
            " region and profile in the environment right?"
        )
    # A code in words says more than a status.
    said = " ".join(sorted(codes, key=str.isdigit)) or type(error).__name__
    return UserError(f"{where}: cannot {doing}: the store answers {said}; try again, and look at the store")


def _codes(error: BaseException) -> Iterator[str]:
    """The store's own codes and HTTP statuses in one client's error."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        yield str(response.get("Error", {}).get("Code", ""))
        yield str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    # Of aiohttp's errors ``code`` is deprecated, and warns.
    names = ("status",) if hasattr(error, "status") and not hasattr(error, "details") else ("status", "code")
    for name in names:
        value: Any = getattr(error, name, None)
        if isinstance(value, int | str):
            yield str(value)

"""Where a file lies, as text: on this machine, behind http(s):// or in s3://; and what in that text is a secret."""

import re
from urllib.parse import urlsplit, urlunsplit

from urbancross.errors import ConfigError, TileError

# Names of query parameters by which a URL says who may read: of Azure, Amazon, Google, CloudFront, and usual ones.
SECRET = re.compile(
    r"sig|signature|se|sp|sr|st|sv|ske|skoid|sks|skt|sktid|skv|x-(amz|goog)-.*|awsaccesskeyid|googleaccessid|expires"
    r"|policy|key-pair-id|hdnts|__gda__|jwt|.*(token|secret|password|passwd|credential|api[-_]?key|subscription[-_]?key).*"
    r"|key|auth|authorization|access[-_]?key",
    re.IGNORECASE,
)


def is_remote(href: str) -> bool:
    return href.startswith(("http://", "https://", "s3://"))


def secrets_in(url: str) -> list[str]:
    """Names of what looks like a credential in a URL; never their values."""
    parts = urlsplit(url)
    found = [name for name in (piece.partition("=")[0] for piece in parts.query.split("&")) if SECRET.fullmatch(name)]
    return found + (["a password"] if "@" in parts.netloc else [])


def bare(url: str) -> str:
    """A URL without what looks like a credential."""
    parts = urlsplit(url)
    kept = [piece for piece in parts.query.split("&") if not SECRET.fullmatch(piece.partition("=")[0])]
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="&".join(kept)))


def refuse_secrets(url: str, flag: str) -> None:
    """
    Raises:
        ConfigError: a table or a log that holds the URL would hold a secret.
    """
    try:
        found = secrets_in(url)
    except ValueError as error:  # such as an open bracket in the host's name
        raise ConfigError(f"{flag} is no URL ({error})") from None
    if found:
        raise ConfigError(f"{flag}: its URL holds a credential ({', '.join(found)}), which would be kept; leave it out")


def local_path(href: str) -> str | None:
    """The path of a file on this machine; None for a remote one.

    Raises:
        TileError: it lies where nothing can be read.
    """
    if is_remote(href):
        return None
    if href.startswith("file://"):
        return urlsplit(href).path
    if "://" in href or href.startswith("/vsi"):
        raise TileError(f"{re.split('://|(?<=.)/', href)[0][:20]} cannot be read; http(s)://, s3:// and files can")
    return href

"""Objects of an S3 bucket. Endpoint, region and credentials come from the environment; a version is an ETag.

Publishing is a conditional PUT (`If-None-Match: *`, `If-Match`), or a multipart upload that ends with the same
condition. An answer that was lost is asked for again, so a refused condition may be our own first try: every object
names its writer, and a writer that finds its own name has won.
"""

import functools
import io
import mmap
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import IO, Any
from urllib.parse import urlsplit

import boto3
import pyarrow.fs
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    IncompleteReadError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from urbancross.errors import ConfigError, StorageError
from urbancross.failpoints import writing

PART_BYTES = 64 << 20  # above this an upload goes in parts of this size
ATTEMPTS = 8
PARALLEL_PARTS = 4
ABSENT = {"404", "NoSuchKey", "NotFound", "NoSuchUpload"}
REFUSED = {"412", "PreconditionFailed"}
CROSSED = {"409", "ConditionalRequestConflict", "OperationAborted"}
CUT = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError)  # within a body; botocore asks again before it
CREDENTIALS = {
    "400", "403",  # of a HEAD, which tells no more
    "AccessDenied", "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken",
    "RequestExpired", "RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired",
}  # fmt: skip
ARROW_CREDENTIALS = ("ACCESS_DENIED", "ACCESS_KEY", "CLIENT_TOKEN", "EXPIRED", "SIGNATURE", "SKEWED", "status 400")


@dataclass(frozen=True, order=True)
class S3Path:
    """`s3://bucket/key`, with the few manners of a `Path` that archives need."""

    bucket: str
    key: str = ""  # without leading or trailing slash

    @classmethod
    def parse(cls, text: str) -> "S3Path":
        bucket, _, key = text.removeprefix("s3://").partition("/")
        if not text.startswith("s3://") or not re.fullmatch(r"[a-zA-Z0-9._-]+", bucket) or "?" in text:
            # the text itself may hold a secret, so it is not repeated
            raise ConfigError("an s3:// place is s3://bucket/prefix; credentials come from the environment")
        return cls(bucket, "/".join(part for part in key.split("/") if part))

    def __truediv__(self, name: str) -> "S3Path":
        return S3Path(self.bucket, f"{self.key}/{name}" if self.key else name)

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2] or self.bucket

    @property
    def parent(self) -> "S3Path":
        return S3Path(self.bucket, self.key.rpartition("/")[0])

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}".rstrip("/")


def names(folder: S3Path) -> list[str]:
    """Objects and folders right below a prefix, in order."""
    prefix = f"{folder.key}/" if folder.key else ""
    with _told("list", folder):
        pages = _client().get_paginator("list_objects_v2").paginate(Bucket=folder.bucket, Prefix=prefix, Delimiter="/")
        found: list[str] = []
        for page in pages:
            found += [item["Prefix"] for item in page.get("CommonPrefixes", ())]
            found += [item["Key"] for item in page.get("Contents", ())]
    return sorted(name.removeprefix(prefix).rstrip("/") for name in found if name != prefix)


def read(path: S3Path) -> tuple[bytes, str] | None:
    """An object's bytes and version, or None when it is absent."""
    with _told("read", path):
        for attempt in range(ATTEMPTS):
            try:
                answer = _client().get_object(Bucket=path.bucket, Key=path.key)
                return answer["Body"].read(), answer["ETag"]
            except CUT:
                if attempt == ATTEMPTS - 1:
                    raise
                time.sleep(0.1 * 2**attempt)
            except ClientError as error:
                if _code(error) in ABSENT:
                    return None
                raise
    raise AssertionError("unreachable")


@dataclass(frozen=True)
class Piece:
    """A range of an object: its bytes, and size and version of the whole."""

    data: bytes
    size: int
    version: str


@dataclass(frozen=True)
class Refusal:
    """Why a range was not given, and whether it may be soon."""

    told: str
    passing: bool


def read_range(href: str, start: int, stop: int) -> Piece | Refusal:
    """Bytes of an object that may be anybody's, asked for once. As other programs have it, `AWS_NO_SIGN_REQUEST=YES`
    reads without credentials, and `AWS_REQUEST_PAYER=requester` at the reader's cost."""
    bucket, _, key = href.removeprefix("s3://").partition("/")
    payer = {"RequestPayer": "requester"} if os.environ.get("AWS_REQUEST_PAYER") == "requester" else {}
    try:
        client = _reader(os.environ.get("AWS_NO_SIGN_REQUEST", "").upper() in ("YES", "TRUE", "1"))
        told = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}", **payer)
        size = told.get("ContentRange", "").rpartition("/")[2] or told["ContentLength"]
        return Piece(told["Body"].read(), int(size), told["ETag"])
    except ClientError as error:
        code = _code(error)
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code in CREDENTIALS:
            return Refusal(f"the credentials in the environment were refused ({code})", passing=False)
        return Refusal(code, passing=status >= 500 or status == 429 or code in ("SlowDown", "RequestTimeout"))
    except (NoCredentialsError, NoRegionError):
        return Refusal("no AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, or AWS_NO_SIGN_REQUEST=YES", False)
    except ParamValidationError:
        return Refusal("no place in a bucket", passing=False)
    except (BotoCoreError, *CUT):
        return Refusal("no connection, or the answer was cut short", passing=True)


def create(path: S3Path, data: bytes | memoryview) -> str | None:
    """Make an object only if it is absent; its version, or None when somebody else was first."""
    return _put(path, data, IfNoneMatch="*")


@contextmanager
def draft(path: S3Path) -> Iterator[IO[bytes]]:
    """A file of this machine to fill for `create_from`; it has no name, so even a killed process leaves none."""
    with ExitStack() as opened:
        with writing_to(path):
            file = opened.enter_context(tempfile.TemporaryFile(buffering=0))
        yield io.BufferedWriter(file)


def create_from(path: S3Path, file: IO[bytes]) -> str | None:
    """`create` with what a draft holds."""
    with writing_to(path):
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
            return create(path, view)


@contextmanager
def writing_to(path: S3Path) -> Iterator[None]:
    """What this machine answers to the writing of a draft, as one line of our own.

    Raises:
        StorageError: the folder for temporary files takes no more.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"cannot write {path} by way of {tempfile.gettempdir()}: {error.strerror}; "
            "free some space or set TMPDIR, and run the same command again"
        ) from error


def swap(path: S3Path, data: bytes | memoryview, version: str) -> str | None:
    """Write over an object only if it is still the one of this version; None when it is not."""
    return _put(path, data, IfMatch=version)


def replace(path: S3Path, data: bytes | memoryview) -> None:
    _put(path, data)


def remove(path: S3Path) -> None:
    with _told("remove", path):
        _client().delete_object(Bucket=path.bucket, Key=path.key)


def modified_s(path: S3Path) -> float:
    """When an object was last written, in seconds since 1970, by the server's clock."""
    with _told("read", path):
        return _client().head_object(Bucket=path.bucket, Key=path.key)["LastModified"].timestamp()


def exists(path: S3Path) -> bool:
    with _told("read", path):
        return _head(path) is not None


def age_s(path: S3Path) -> float:
    """Seconds since an object was last written, by the server's clock on both sides."""
    with _told("read", path):
        answer = _head(path)
    if answer is None:
        return float("inf")
    now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    return (now - answer["LastModified"]).total_seconds()


def sweep(folder: S3Path) -> int:
    """Give up the multipart uploads that killed writers left; their parts would be paid for."""
    with _told("clean", folder):
        pages = _client().get_paginator("list_multipart_uploads")
        left = [
            upload
            for page in pages.paginate(Bucket=folder.bucket, Prefix=f"{folder.key}/")
            for upload in page.get("Uploads", ())
        ]
        for upload in left:
            _client().abort_multipart_upload(Bucket=folder.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    return len(left)


def file_system() -> pyarrow.fs.S3FileSystem:
    """What Arrow reads shards with: the same endpoint, region and credentials."""
    return _arrow(_endpoint(), _region())


def _put(path: S3Path, data: bytes | memoryview, **condition: str) -> str | None:
    writer = uuid.uuid4().hex
    send: Callable[..., str] = _put_in_parts if len(data) > PART_BYTES else _put_whole
    with _told("write", path):
        writing(path.name, "before")
        for attempt in range(ATTEMPTS):
            try:
                made = send(path, data, writer, condition)
                writing(path.name, "named")
                return made
            except ClientError as error:
                if condition and _code(error) in REFUSED | ABSENT:
                    there = _head(path)
                    if there is not None:  # ours, where the answer to an earlier try was lost
                        return there["ETag"] if there["Metadata"].get("writer") == writer else None
                    if "IfMatch" in condition:
                        return None
                elif _code(error) not in CROSSED:
                    raise
                if attempt == ATTEMPTS - 1:
                    raise
                time.sleep(0.1 * 2**attempt)
    raise AssertionError("unreachable")


def _put_whole(path: S3Path, data: bytes | memoryview, writer: str, condition: dict[str, str]) -> str:
    told = {"Bucket": path.bucket, "Key": path.key, "Body": bytes(data), "Metadata": {"writer": writer}}
    return _client().put_object(**told, **condition)["ETag"]


def _put_in_parts(path: S3Path, data: bytes | memoryview, writer: str, condition: dict[str, str]) -> str:
    client, place = _client(), {"Bucket": path.bucket, "Key": path.key}
    upload = client.create_multipart_upload(**place, Metadata={"writer": writer})["UploadId"]

    def send(number: int) -> dict[str, Any]:
        if number == 2:
            writing(path.name, "halfway")
        body = bytes(data[(number - 1) * PART_BYTES : number * PART_BYTES])
        sent = client.upload_part(**place, UploadId=upload, PartNumber=number, Body=body)
        return {"PartNumber": number, "ETag": sent["ETag"]}

    try:
        with ThreadPoolExecutor(PARALLEL_PARTS) as pool:
            parts = list(pool.map(send, range(1, -(-len(data) // PART_BYTES) + 1)))
        writing(path.name, "written")
        return client.complete_multipart_upload(
            **place, UploadId=upload, MultipartUpload={"Parts": parts}, **condition
        )["ETag"]
    except BaseException:
        with suppress(ClientError, BotoCoreError):  # what stays is swept by the next run
            client.abort_multipart_upload(**place, UploadId=upload)
        raise


def _head(path: S3Path) -> dict[str, Any] | None:
    try:
        return _client().head_object(Bucket=path.bucket, Key=path.key)
    except ClientError as error:
        if _code(error) in ABSENT:
            return None
        raise


@contextmanager
def _told(doing: str, path: S3Path) -> Iterator[None]:
    """What the service answers, as one line of our own; no answer repeats a secret."""
    try:
        yield
    except ClientError as error:
        code = _code(error)
        if code == "NoSuchBucket":
            raise ConfigError(f"{path}: no such bucket; make it, or check the name and AWS_ENDPOINT_URL") from None
        if code in CREDENTIALS:
            raise StorageError(f"cannot {doing} {path}: {_refused(code)}") from None
        raise StorageError(f"cannot {doing} {path}: the service answered {code}; run the same command again") from None
    except (NoCredentialsError, NoRegionError) as error:
        raise ConfigError(f"{path}: {error}; set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION") from None
    except BotoCoreError as error:
        why = str(error).splitlines()[0].partition("?")[0].replace('"', "")  # a query may hold a signature
        raise StorageError(
            f"cannot {doing} {path}: {why}; check AWS_ENDPOINT_URL and the network, and run the same command again"
        ) from None


def arrow_error(path: S3Path, error: Exception) -> StorageError:
    """What Arrow says of a request that failed, in the words of `_told`; it adds the service's own, which are left."""
    if isinstance(error, FileNotFoundError):
        return StorageError(f"cannot read {path}: there is no such object; make it again")
    found = re.search(r"AWS Error (.+? operation)", str(error))
    code = found[1] if found else type(error).__name__  # "ACCESS_DENIED during HeadObject operation"
    if any(sign in code for sign in ARROW_CREDENTIALS):
        return StorageError(f"cannot read {path}: {_refused(code)}")
    return StorageError(f"cannot read {path}: the service answered {code}; run the same command again")


def _refused(code: str) -> str:
    return f"the credentials in the environment were refused ({code}); renew them and run the same command again"


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "no code"))


def _endpoint() -> str | None:
    told = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    parts = urlsplit(told or "")
    if told and (parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query):
        raise ConfigError(
            "AWS_ENDPOINT_URL: want http://host:port or https://host; credentials have their own variables"
        )
    return told


def _region() -> str | None:
    named = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return named or ("us-east-1" if _endpoint() else None)


@functools.cache
def _client() -> Any:
    settings = Config(retries={"mode": "standard", "total_max_attempts": ATTEMPTS}, connect_timeout=10, read_timeout=60)
    return boto3.client("s3", endpoint_url=_endpoint(), region_name=_region(), config=settings)


@functools.cache
def _reader(unsigned: bool) -> Any:
    settings = Config(retries={"total_max_attempts": 1}, connect_timeout=10, read_timeout=60, max_pool_connections=16)
    if unsigned:
        settings = settings.merge(Config(signature_version=UNSIGNED))
    return boto3.client("s3", endpoint_url=_endpoint(), region_name=_region(), config=settings)


@functools.cache
def _arrow(endpoint: str | None, region: str | None) -> pyarrow.fs.S3FileSystem:
    retries = pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS)
    scheme, _, host = (endpoint or "").partition("://")
    given = {"endpoint_override": host.rstrip("/"), "scheme": scheme} if host else {}
    return pyarrow.fs.S3FileSystem(region=region, retry_strategy=retries, connect_timeout=10, **given)

"""Objects under one roof, a local folder or an S3 prefix: list, read, publish; the only place that opens shards.

Nothing is ever seen half-written under its final name. A name that starts with a dot is nobody's: readers skip it.
Which store a place lies in is decided here; `stores/local.py` and `stores/s3.py` offer the same functions.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from urbancross.drafts import Groups, draft
from urbancross.errors import ConfigError, SchemaError, StorageError
from urbancross.stores import Place, s3, store_of
from urbancross.stores import local as local_store
from urbancross.stores.s3 import S3Path

METADATA = b"urbancross"  # the key of a shard's schema metadata that says what made it
PARALLEL_READS = 16


def place(text: str) -> Place:
    """A local path, or `s3://bucket/prefix`.

    Raises:
        ConfigError: neither.
    """
    return S3Path.parse(text) if text.lower().startswith("s3://") else local(text)


def local(text: str) -> Path:
    """A path on this machine; sources and maps are read from there alone.

    Raises:
        ConfigError: it names another kind of place, or is not UTF-8 and so fits in no table.
    """
    if "://" in text:
        kind = text.partition("://")[0][:10]
        raise ConfigError(
            f"{kind}:// cannot be read here; give a local path (archives and checkpoints may also be s3://bucket/prefix)"
        )
    try:
        path = Path(text).expanduser().absolute()
    except RuntimeError as error:  # "~nobody"
        raise ConfigError(f"{text}: {error}; give a whole path") from None
    if (printable := str(path).encode("utf-8", "backslashreplace").decode()) != str(path):
        raise ConfigError(f"{printable}: the path is not UTF-8; rename it, or go by a link with another name")
    return path


def archive(text: str, what: str = "--archive") -> Place:
    """An existing archive, or one line that says what is missing.

    Raises:
        ConfigError: nothing is there.
    """
    found = place(text)
    if isinstance(found, Path):
        return folder(text, what)
    if not names(found):
        raise ConfigError(f"{what} {text}: nothing is there; check the place, or make it first")
    return found


def folder(text: str, what: str) -> Path:
    """An existing local folder, or one line that says what is missing.

    Raises:
        ConfigError: the folder is not there, or the place is not local.
    """
    path = local(text)
    if not path.is_dir():
        raise ConfigError(f"{what} {text}: no such folder; check the path, or make it first")
    return path


def file(text: str, what: str) -> Path:
    """An existing local file, or one line that says what is missing.

    Raises:
        ConfigError: the file is not there, or the place is not local.
    """
    path = local(text)
    if not path.is_file():
        raise ConfigError(f"{what} {text}: no such file; check the path")
    return path


def require_writable(path: Place, what: str) -> None:
    """Find out before the work whether its result can be written under this name; S3 is asked when it is.

    Raises:
        ConfigError: a folder stands there, or none can be made for it.
    """
    if isinstance(path, S3Path):
        return
    try:
        if path.is_dir():
            raise ConfigError(f"{what} {path} is a folder; give another name")
        parent = next(folder for folder in path.parents if folder.exists())
    except PermissionError as error:
        raise ConfigError(f"{what} {path}: {error.strerror}; choose another place") from None
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigError(f"{what} {path}: nothing can be written in {parent}; choose another place")


def names(folder: Place) -> list[str]:
    """Everything right below a place, in order; empty when there is no such place."""
    return store_of(folder).names(folder)


def tables(archive: Place, kind: str = "") -> list[str]:
    """Folders of an archive that may be tables of a kind: `captions@given`, `captions@template`."""
    return [name for name in names(archive) if not name.startswith(".") and kind in ("", name.partition("@")[0])]


def shards(table: Place) -> list[str]:
    """Names of the shards of a table, in order; empty when there is no such table."""
    return [name for name in names(table) if name.endswith(".parquet") and not name.startswith(".")]


def exists(place: Place) -> bool:
    """Whether there is an object of this name."""
    return store_of(place).exists(place)


def read(place: Place) -> tuple[bytes, str] | None:
    """An object's bytes and its version, or None when it is absent."""
    return store_of(place).read(place)


def read_shard(path: Place, columns: list[str] | None = None) -> pa.Table:
    """One shard, whole.

    Raises:
        SchemaError: the file is no Parquet, or lacks one of `columns`.
        StorageError: the file cannot be read.
    """
    try:
        with _opened(path) as source:
            return pq.read_table(source, columns=columns, partitioning=None)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from None


def read_row(path: Place, columns: list[str], row: int) -> dict[str, Any]:
    """One row of a shard; of the file only the group of rows that holds it is read.

    Raises:
        SchemaError: the file is no Parquet, has not so many rows, or lacks one of `columns`.
        StorageError: the file cannot be read.
    """
    with parquet(path) as file:
        if lacking := sorted(set(columns) - set(file.schema_arrow.names)):
            raise SchemaError(f"{path} has no column {lacking[0]}; remove it and run the job again")
        start = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if row < start + count:
                return file.read_row_group(group, columns=columns).slice(row - start, 1).to_pylist()[0]
            start += count
    raise SchemaError(f"{path} has {start} rows, row {row} wanted; remove it and run the job again")


def read_schema(path: Place) -> pa.Schema:
    """The schema of a shard, its metadata included."""
    return _metadata(path).schema.to_arrow_schema()


@contextlib.contextmanager
def parquet(path: Place) -> Iterator[pq.ParquetFile]:
    """A shard to read row group by row group.

    Raises:
        SchemaError: the file is no Parquet.
        StorageError: the file cannot be read.
    """
    try:
        with _opened(path) as source:
            yield pq.ParquetFile(source)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from None


def row_counts(table: Place, names: Sequence[str]) -> list[int]:
    """Rows of each shard, from the files' footers alone."""
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        return list(pool.map(lambda name: _metadata(table / name).num_rows, names))


def _opened(path: Place) -> pa.NativeFile:
    if isinstance(path, S3Path):
        return s3.file_system().open_input_file(f"{path.bucket}/{path.key}")
    return pa.OSFile(str(path))


def _metadata(path: Place) -> pq.FileMetaData:
    try:
        with _opened(path) as source:
            return pq.read_metadata(source)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Place, error: Exception) -> SchemaError | StorageError:
    first = str(error).splitlines()[0]
    # Arrow calls a broken file a bare OSError at times; another try would not mend it.
    bare = type(error) is OSError and error.errno is None
    if (isinstance(error, pa.ArrowInvalid) or bare) and "AWS Error" not in first:
        return SchemaError(f"{path} is not a shard as wanted ({first}); remove it and run the job again")
    if isinstance(path, S3Path):
        return s3.arrow_error(path, error)
    return StorageError(f"cannot read {path}: {first}")


def made_by(schema: pa.Schema) -> dict[str, Any]:
    """What made a shard, as `with_made_by` wrote it; empty for a table of another program."""
    return json.loads((schema.metadata or {}).get(METADATA, b"{}"))


def with_made_by(schema: pa.Schema, maker: dict[str, Any]) -> pa.Schema:
    """`schema` with the settings that made the table, and what else its metadata already holds."""
    return schema.with_metadata({**(schema.metadata or {}), METADATA: json.dumps(maker, sort_keys=True).encode()})


def decode_shard(path: Place, data: bytes) -> pa.Table:
    """The rows of a shard from its bytes.

    Raises:
        SchemaError: they are no Parquet file.
    """
    try:
        return pq.read_table(pa.BufferReader(data), partitioning=None)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from None


def encode_shard(table: pa.Table) -> memoryview:
    """A shard as the bytes of a Parquet file; equal tables give equal bytes."""
    file = BytesIO()
    groups = Groups(file, table.schema)
    groups.add(table)
    groups.finish()
    return file.getbuffer()


def publish_shard(path: Place, table: pa.Table) -> bool:
    """Write a shard under its final name in one step; False when the name was taken before."""
    with draft(path, table.schema) as shard:
        shard.add(table)
        return shard.publish()


def create(place: Place, data: bytes | memoryview) -> str | None:
    """Make an object only if it is absent.

    Returns:
        Its version; None when somebody else made it first: theirs stays as it is.
    """
    return store_of(place).create(place, data)


def swap(place: Place, data: bytes | memoryview, version: str) -> str | None:
    """Write over an object only if it is still of this version.

    Returns:
        The new version; None when another one is there by now.
    """
    return store_of(place).swap(place, data, version)


def replace(place: Place, data: bytes | memoryview) -> None:
    """Write a small object that may be written again (a report, metrics), still in one step."""
    store_of(place).replace(place, data)


def remove(place: Place) -> None:
    """Remove an object; nothing happens when it is absent."""
    store_of(place).remove(place)


def age_s(place: Place) -> float:
    """Seconds since an object was last written, by its store's clock alone; infinite when it is absent."""
    return store_of(place).age_s(place)


def modified_s(place: Place) -> float:
    """When an object was last written, in seconds since 1970."""
    return store_of(place).modified_s(place)


def sweep(table: Place) -> int:
    """Remove what killed writers left half-written in a table; returns how many."""
    return store_of(table).sweep(table)


@contextlib.contextmanager
def publish_folder(path: Place, mark: str = "") -> Iterator[Path]:
    """Give a temporary folder to fill; it takes the name `path` when the block ends well, and vanishes otherwise.

    Args:
        mark: a file without which the folder counts for nothing; on S3, where no folder is renamed, it is written last.

    Raises:
        ConfigError: `path` exists already.
    """
    if isinstance(path, S3Path):
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
            files = {file.relative_to(scratch).as_posix(): file for file in Path(scratch).rglob("*") if file.is_file()}
            if exists(path / mark):
                raise ConfigError(f"{path} exists already; remove it, or give another name")
            for name in sorted(files.keys() - {mark}):
                replace(path / name, files[name].read_bytes())
            if create(path / mark, files[mark].read_bytes()) is None:
                raise ConfigError(f"{path} was made by another run meanwhile; give another name")
        return
    temporary = path.parent / f".{path.name}-{uuid.uuid4().hex}.tmp"
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}; choose another place") from error
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            raise ConfigError(f"{path} exists already; remove it, or give another name")
        os.rename(temporary, path)
        local_store.fsync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def fetch_folder(folder: S3Path, into: Path) -> None:
    """Copy the objects right below a prefix into a local folder, which takes its name when it is whole."""
    with publish_folder(into) as temporary:
        for name in names(folder):
            if (found := read(folder / name)) is not None:  # a name may be a folder's
                (temporary / name).write_bytes(found[0])


def remove_folder(folder: Place) -> None:
    """Remove a folder, or the objects right below a prefix; nothing happens when there are none."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        for name in names(folder):
            remove(folder / name)


def fetched(place: Place) -> Path:
    """A file that is never written again, on this machine: one of S3 is fetched once and kept.

    Raises:
        FileNotFoundError: there is no such object.
    """
    if isinstance(place, Path):
        return place
    kept = cache() / "files" / digest_text(str(place)) / place.name
    if not kept.exists():
        found = read(place)
        if found is None:
            raise FileNotFoundError(str(place))
        create(kept, found[0])
    return kept


def cache() -> Path:
    """Where files that were fetched are kept on this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "urbancross"


def write_json(path: Place, value: Any) -> None:
    replace(path, (json.dumps(value, indent=2, sort_keys=False) + "\n").encode())


def read_json(path: Place, what: str) -> Any:
    """A JSON file, or one line that says what is wrong with it.

    Raises:
        ConfigError: the file is absent, cannot be read or is not JSON.
    """
    if isinstance(path, Path) and path.is_dir():
        raise ConfigError(f"{what} {path} cannot be read: it is a folder; give a JSON file")
    found = json_or_none(path, what)
    if found is None:
        raise ConfigError(f"{what} {path}: no such file; check the path")
    return found


def json_or_none(path: Place, what: str) -> Any:
    """A JSON file, or None when it is absent.

    Raises:
        ConfigError: the file is not JSON.
    """
    found = read(path)
    if found is None:
        return None
    try:
        return json.loads(found[0].decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{what} {path} is not JSON ({error}); mend or replace it") from None


def digest(*files: Path) -> str:
    """First 16 hex digits of the SHA-256 over the files' bytes."""
    total = hashlib.sha256()
    for file in files:
        with open(file, "rb") as handle:
            while chunk := handle.read(1 << 20):
                total.update(chunk)
    return total.hexdigest()[:16]


def digest_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_text(text: str) -> str:
    """First 16 hex digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]

"""Files under one roof: list, read, publish. Nothing is ever seen half-written under its final name.

A place is a path below a local folder. A name that starts with a dot or ends in `.tmp` is nobody's: readers skip it.
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from urbancross.errors import ConfigError, SchemaError, StorageError

METADATA = b"urbancross"  # the key of a shard's schema metadata that says what made it


def folder(place: str, what: str) -> Path:
    """An existing local folder, or one line that says what is missing.

    Raises:
        ConfigError: the folder is not there, or the place is not local.
    """
    path = local(place)
    if not path.is_dir():
        raise ConfigError(f"{what} {place}: no such folder; check the path, or make it first")
    return path


def file(place: str, what: str) -> Path:
    """An existing local file, or one line that says what is missing.

    Raises:
        ConfigError: the file is not there, or the place is not local.
    """
    path = local(place)
    if not path.is_file():
        raise ConfigError(f"{what} {place}: no such file; check the path")
    return path


def require_writable(path: Path, what: str) -> None:
    """Find out before the work whether its result can be written under this name.

    Raises:
        ConfigError: a folder stands there, or none can be made for it.
    """
    if path.is_dir():
        raise ConfigError(f"{what} {path} is a folder; give another name")
    parent = next(folder for folder in path.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigError(f"{what} {path}: nothing can be written in {parent}; choose another place")


def local(place: str) -> Path:
    if "://" in place:
        raise ConfigError(f"{place}: only local folders can be read in this version; give a path")
    return Path(place).expanduser().absolute()


def shards(table: Path) -> list[str]:
    """Names of the shards of a table, in order; empty when there is no such table."""
    if not table.is_dir():
        return []
    return sorted(name for name in os.listdir(table) if name.endswith(".parquet") and not name.startswith("."))


def read_shard(path: Path, columns: list[str] | None = None) -> pa.Table:
    """One shard, whole.

    Raises:
        SchemaError: the file is no Parquet, or lacks one of `columns`.
        StorageError: the file cannot be read.
    """
    try:
        return pq.read_table(path, columns=columns, partitioning=None)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from error


def read_schema(path: Path) -> pa.Schema:
    """The schema of a shard, its metadata included."""
    return _metadata(path).schema.to_arrow_schema()


def row_counts(table: Path, names: Sequence[str]) -> list[int]:
    """Rows of each shard, from the files' footers alone."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda name: _metadata(table / name).num_rows, names))


def _metadata(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> SchemaError | StorageError:
    first = str(error).splitlines()[0]
    # Arrow calls a broken file a bare OSError at times; another try would not mend it.
    broken = isinstance(error, pa.ArrowInvalid) or (type(error) is OSError and error.errno is None)
    if broken:
        return SchemaError(f"{path} is not a shard as wanted ({first}); remove it and run the job again")
    return StorageError(f"cannot read {path}: {first}")


def made_by(schema: pa.Schema) -> dict[str, Any]:
    """What made a shard, as `with_made_by` wrote it; empty for a table of another program."""
    return json.loads((schema.metadata or {}).get(METADATA, b"{}"))


def with_made_by(schema: pa.Schema, maker: dict[str, Any]) -> pa.Schema:
    """`schema` with the settings that made the table, and what else its metadata already holds."""
    return schema.with_metadata({**(schema.metadata or {}), METADATA: json.dumps(maker, sort_keys=True).encode()})


def publish_shard(path: Path, table: pa.Table) -> bool:
    """Write a shard under its final name in one step; False when the name was taken before."""
    buffer = BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=256)
    return publish(path, buffer.getbuffer())


def publish(path: Path, data: bytes | memoryview) -> bool:
    """Create `path` with `data` only if it is absent: temporary file, fsync, link, fsync of the folder.

    Returns:
        False when somebody else published that name first; their file stays as it is.
    """
    _make_parent(path)
    temporary = path.parent / f".{path.name}-{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        _fsync_folder(path.parent)
        return True
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}; free some space or choose another place") from error
    finally:
        temporary.unlink(missing_ok=True)


def replace(path: Path, data: bytes) -> None:
    """Write a small file that may be written again (a report, metrics), still in one step."""
    _make_parent(path)
    temporary = path.parent / f".{path.name}-{uuid.uuid4().hex}.tmp"
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}; choose another place") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def publish_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; it takes the name `path` when the block ends well, and vanishes otherwise.

    Raises:
        ConfigError: `path` exists already.
    """
    _make_parent(path)
    temporary = path.parent / f".{path.name}-{uuid.uuid4().hex}.tmp"
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            raise ConfigError(f"{path} exists already; remove it, or give another name")
        os.rename(temporary, path)
        _fsync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    replace(path, (json.dumps(value, indent=2, sort_keys=False) + "\n").encode())


def read_json(path: Path, what: str) -> Any:
    """A JSON file, or one line that says what is wrong with it.

    Raises:
        ConfigError: the file is absent, cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{what} {path}: no such file; check the path") from None
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read: {error.strerror}; give a JSON file") from None
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


def digest_text(text: str) -> str:
    """First 16 hex digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}; choose another place") from error


def _fsync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

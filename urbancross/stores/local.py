"""Objects as files of a local (or network) file system. A version is a file's inode, time and size."""

import contextlib
import errno
import fcntl
import io
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from urbancross.errors import StorageError
from urbancross.failpoints import writing

LOCK_DEADLINE_S = 30.0
SWEPT = (".parquet", ".arrow", ".npy", ".codes")
FULL = {errno.ENOSPC, errno.EDQUOT}
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}


def names(folder: Path) -> list[str]:
    """Files and folders in a folder, in order; empty when there is no such folder."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StorageError(f"cannot list {folder}: {error.strerror}; check its permissions") from error


def read(path: Path) -> tuple[bytes, str] | None:
    """A file's bytes and version, or None when it is absent."""
    try:
        with open(path, "rb") as file:
            return file.read(), _version(os.fstat(file.fileno()))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}; check the path and its permissions") from error


def create(path: Path, data: bytes | memoryview) -> str | None:
    """Make a file only if it is absent: temporary file, fsync, link, fsync of the folder.

    Returns:
        The new file's version; None when somebody else has that name: their file stays as it is.
    """
    with _temporary(path, data) as temporary:
        return _named(path, temporary)


@contextlib.contextmanager
def draft(path: Path) -> Iterator[IO[bytes]]:
    """A file to fill for `create_from`; gone when the block ends."""
    temporary = path.parent / f".{path.name}-{uuid.uuid4().hex}.tmp"
    try:
        with contextlib.ExitStack() as opened:
            with writing_to(path):
                writing(path.name, "before")
                path.parent.mkdir(parents=True, exist_ok=True)
                file = opened.enter_context(open(temporary, "wb", buffering=0))
            yield io.BufferedWriter(file)  # closed below it, so that a full disk is not told once more
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def create_from(path: Path, file: IO[bytes]) -> str | None:
    """`create` with what a draft holds."""
    with writing_to(path):
        _settle(path, file)
        return _named(path, Path(file.name))


def swap(path: Path, data: bytes | memoryview, version: str) -> str | None:
    """Write over a file only if it is still the one of this version; None when it is not."""
    with _temporary(path, data) as temporary, _exclusive(path.parent):
        try:
            if _version(os.stat(path)) != version:
                return None
        except FileNotFoundError:
            return None
        made = _version(os.stat(temporary))
        os.replace(temporary, path)
        fsync_folder(path.parent)
        return made


def replace(path: Path, data: bytes | memoryview) -> None:
    """Write a file, whatever is there, in one step."""
    with _temporary(path, data) as temporary:
        os.replace(temporary, path)


def remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def modified_s(path: Path) -> float:
    """When a file was last written, in seconds since 1970, by the file system's own clock."""
    return path.stat().st_mtime


def exists(path: Path) -> bool:
    return path.is_file()


def age_s(path: Path) -> float:
    """Seconds since a file was last written, by the file system's own clock on both sides."""
    probe = path.parent / f".{uuid.uuid4().hex}.tmp"
    probe.write_bytes(b"")
    try:
        now = probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
    try:
        return now - path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def sweep(folder: Path) -> int:
    """Remove what killed writers left; a writer that still lives finds its file gone and stops."""
    # These alone: another run may be asking for the lease just now.
    begun = [name for name in names(folder) if name.startswith(".") and name.endswith(".tmp")]
    left = [name for name in begun if any(f"{kind}-" in name for kind in SWEPT)]
    for name in left:
        (folder / name).unlink(missing_ok=True)
    return len(left)


def _version(told: os.stat_result) -> str:
    return f"{told.st_ino}-{told.st_mtime_ns}-{told.st_size}"


def _settle(path: Path, file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
    writing(path.name, "written")


def _named(path: Path, temporary: Path) -> str | None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return None
    writing(path.name, "named")
    fsync_folder(path.parent)
    return _version(os.stat(temporary))


@contextlib.contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """What the file system answers, as one line of our own.

    Raises:
        StorageError: `path` cannot be written.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        why = "its file system has no hard links" if error.errno in NO_LINKS else error.strerror
        then = "free some space" if error.errno in FULL else "choose another place"
        raise StorageError(f"cannot write {path}: {why}; {then}, and run the same command again") from error


@contextlib.contextmanager
def _temporary(path: Path, data: bytes | memoryview) -> Iterator[Path]:
    """A file beside `path` with `data`, safe on the disk; gone when the block ends."""
    with draft(path) as file, writing_to(path):
        half = len(data) // 2
        file.write(data[:half])
        file.flush()
        writing(path.name, "halfway")
        file.write(data[half:])
        _settle(path, file)
        yield Path(file.name)


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """One process of all in the block; a process that dies lets go."""
    with open(folder / ".lock", "wb") as file:
        deadline = time.monotonic() + LOCK_DEADLINE_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StorageError(f"{folder / '.lock'} is held by another process; stop it, or wait") from None
                time.sleep(0.01)
        yield


def fsync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

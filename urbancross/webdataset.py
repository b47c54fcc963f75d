"""WebDataset tars as rows of the plan: members that share a key are a sample, whose image is read where it lies.

Planning goes from header to header and reads captions alone; a tar is neither unpacked nor held.
"""

import json
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from urbancross.errors import ConfigError, TileError

IMAGES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("txt", "json")
MOST_TEXT_BYTES = 1 << 20  # of a member with captions; more is no caption
PACKED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}  # how compressed files begin
PACKED_NAMES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST_TARS = 1_000_000
MOST_PADDING = 1 << 20  # bytes behind the last member that are looked at; tar pads to records of 10,240
UNPACK = "members of a compressed tar cannot be read one by one; decompress it to a .tar first, with gunzip or its like"

Row = dict[str, Any]
Facts = Callable[[Row, str], Row]  # what an entry of captions.jsonl says, and where it stands, to columns of the plan


class Member(NamedTuple):
    """
    Attributes:
        offset: of its first byte in the tar.
        wrong: why it cannot be used, if so.
    """

    name: str
    offset: int
    size: int
    wrong: str | None


def tars(source: str, path: Path) -> list[Path] | None:
    """The tars that a source means, in order; None where it is another kind of source.

    Args:
        source: as it was given.
        path: the same as a path, which a pattern such as set-{00000..00012}.tar does not name.

    Raises:
        ConfigError: tars that are compressed, or a pattern that names none, or one that is absent.
    """
    if path.name.lower().endswith(PACKED_NAMES):
        raise ConfigError(f"--source {source}: {UNPACK}")
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.name.lower().endswith((".tar", *PACKED_NAMES)))
        if not found or any(path.rglob("*.[tT][iI][fF]*")):  # what scenes came in may lie beside them
            return None
        if packed := [file for file in found if file.suffix.lower() != ".tar"]:
            raise ConfigError(f"--source {source}: {_printable(packed[0].name)}: {UNPACK}")
        return found
    if path.suffix.lower() != ".tar":
        return None
    named = [path] if path.exists() else [Path(name) for name in expanded(str(path))]
    absent = [tar for tar in named if not tar.is_file()]
    if absent:
        more = f" ({len(absent):,} of {len(named):,} are absent)" if len(named) > 1 else ""
        raise ConfigError(f"--source {source}: no file {absent[0]}{more}; check the path or its range")
    return named


def expanded(pattern: str) -> list[str]:
    """Names that a pattern stands for: `{08..10}` is 08, 09 and 10, the leading zeros as its first end has them.

    Raises:
        ConfigError: a range that runs backwards, or is longer than any set.
    """
    found = RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = int(found[1]), int(found[2])
    if not 0 <= last - first < MOST_TARS:
        raise ConfigError(f"--source {pattern}: {found[0]} is no range of tars; want such as {{00000..00012}}")
    width = len(found[1]) if found[1].startswith("0") else 0
    rest = expanded(pattern[found.end() :])
    return [f"{pattern[: found.start()]}{n:0{width}d}{end}" for n in range(first, last + 1) for end in rest]


def samples(tar: Path, facts: Facts, domain: str) -> Iterator[Row]:
    """A row of the plan for every sample of a tar, in the order of their first members; the unusable ones say why.

    Raises:
        ConfigError: it is no tar, it is cut short or compressed, or a member's name leads out of it.
    """
    if _printable(str(tar)) != str(tar):
        raise ConfigError(f"{_printable(str(tar))}: its name is not UTF-8; rename it")
    try:
        with open(tar, "rb") as file:
            by_key: dict[str, dict[str, Member]] = {}
            for member in members(file, tar):
                key, kind = split_name(member.name)
                if not key:
                    continue
                sample = by_key.setdefault(key, {})
                if kind in sample:
                    sample[kind] = sample[kind]._replace(wrong=f"{member.name} stands in its tar twice")
                elif kind in (*IMAGES, *TEXTS):
                    sample[kind] = member
            for key, sample in by_key.items():
                if sample:
                    yield _row(file, tar, key, sample, facts) | {"domain": domain, "window": None, "colours": None}
    except OSError as error:
        raise ConfigError(f"{tar} cannot be read: {error.strerror or error}; check its permissions") from None


def split_name(name: str) -> tuple[str, str]:
    """`a/0001.seg.png` to its key `a/0001` and its kind `seg.png`; no key: a name that WebDataset passes over."""
    folder, slash, base = name.rpartition("/")
    stem, _, kind = base.partition(".")
    return (f"{folder}{slash}{stem}", kind.lower()) if stem and kind else ("", "")


def members(file: Any, tar: Path) -> Iterator[Member]:
    """What a tar's headers tell, one after the other; folders are passed over.

    Raises:
        ConfigError: it is no whole tar, or a name in it leads out of it.
    """
    begins = file.read(262)
    packed = next((kind for magic, kind in PACKED.items() if begins.startswith(magic)), None)
    if packed is not None and begins[257:] != b"ustar":  # a tar may begin with a name of any letters
        raise ConfigError(f"{tar} is compressed ({packed}); {UNPACK}")
    whole, last = file.seek(0, 2), ""
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep a million of them
                member = _member(info, tar)
                if info.isreg() and member.offset + member.size > whole:
                    raise tarfile.ReadError(f"{member.name} ends behind it")
                last = member.name
                if not info.isdir():
                    yield member
            file.seek(archive.offset)  # where tarfile stopped, be it at the end mark or at what it could not read
        ending = file.read(MOST_PADDING)
        if len(ending) < tarfile.BLOCKSIZE or ending.strip(b"\0"):
            raise tarfile.ReadError("no end mark there")
    except tarfile.TarError as error:
        told = f"is cut short or broken after {last}" if last else "is no tar"
        raise ConfigError(f"{tar} {told} ({error}); fetch it again, or make it anew") from None


def _member(info: tarfile.TarInfo, tar: Path) -> Member:
    name, wrong = _printable(info.name.removeprefix("./")), None
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise ConfigError(f"{tar}: member {name!r} leads out of it; make the tar anew without")
    if not info.isreg():
        kind = "link" if info.issym() or info.islnk() else "device" if info.isdev() else "member of an unknown type"
        wrong = f"{name} is a {kind}, not a file"
    elif info.issparse():
        wrong = f"{name} is stored with holes; make the tar anew without --sparse"
    elif name != info.name.removeprefix("./"):
        wrong = "its name is not UTF-8; rename it"
    return Member(name, info.offset_data, info.size, wrong)


def _row(file: Any, tar: Path, key: str, sample: dict[str, Member], facts: Facts) -> Row:
    row: Row = {
        "tile_id": f"{tar.stem}/{key}",
        "source": str(tar),
        "member": None,
        "captions": None,
        "failure": None,
    }
    try:
        for member in sample.values():
            if member.wrong is not None:
                raise TileError(member.wrong)
        images = [sample[kind] for kind in IMAGES if kind in sample]
        if len(images) != 1:
            told = " and ".join(image.name for image in images) or f"none of {', '.join(IMAGES)}"
            raise TileError(f"one image wanted, found {told}")
        row["member"] = {"offset": images[0].offset, "size": images[0].size}
        row |= _told(file, sample, facts)
    except TileError as error:
        row["failure"] = f"failed:{error}"
    except ConfigError as error:  # a set of files stops there, as its line can be mended; a member of a tar hardly can
        row["failure"] = f"failed:{str(error).partition(';')[0]}"
    return row


def _told(file: Any, sample: dict[str, Member], facts: Facts) -> Row:
    """What the members beside the image say.

    Raises:
        TileError: a member that cannot be read.
        ConfigError: it says something that does not fit the contract of captions.jsonl.
    """
    entry: Row = {}
    if "json" in sample:
        try:
            entry = json.loads(_text(file, sample["json"]))
        except (ValueError, RecursionError) as error:
            raise TileError(f"{sample['json'].name} is not JSON ({error})") from None
        if not isinstance(entry, dict):
            raise TileError(f"{sample['json'].name} is no JSON object")
    texts = _text(file, sample["txt"]).splitlines() if "txt" in sample else []
    for name in ("captions", "caption", "text"):
        value = entry.get(name)
        texts += value if isinstance(value, list) else [] if value is None else [value]
    known = {**entry, "captions": list(dict.fromkeys(texts)) if _are_texts(texts) else texts} if texts else entry
    return facts(known, sample["json"].name if "json" in sample else "its captions")


def _are_texts(texts: list[Any]) -> bool:
    return all(isinstance(text, str) for text in texts)


def _text(file: Any, member: Member) -> str:
    if member.size > MOST_TEXT_BYTES:
        raise TileError(f"{member.name} has {member.size:,} bytes, at most {MOST_TEXT_BYTES:,} of captions wanted")
    file.seek(member.offset)
    try:
        return file.read(member.size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TileError(f"{member.name} is not UTF-8 ({error.reason} at byte {error.start})") from None


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()

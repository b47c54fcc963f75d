"""Archives on S3, against a server on the loopback and a proxy that spoils answers as networks and services do."""

import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pyarrow as pa
import pytest

from urbancross import lease, storage
from urbancross.errors import ConfigError, LeaseError, SchemaError, StorageError
from urbancross.storage import Place
from urbancross.stores import s3

SECRETS = ("AKIAOFTHETEST", "never-to-be-told", "token-of-the-test")
ELSEWHERE = json.dumps({"host": "elsewhere", "process": 7}).encode()
MIB = 1 << 20


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A lost lease ends the main thread's work with SIGTERM; here as `session.interruptible` has it, without Ray."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


def puts(proxy: Any, name: str) -> int:
    return sum(1 for request in proxy.seen if request.startswith("PUT") and request.endswith(f"/{name}"))


def unfinished(bucket: Any) -> list[str]:
    found = s3._client().list_multipart_uploads(Bucket=bucket.bucket).get("Uploads", ())
    return sorted(upload["Key"] for upload in found)


def one_plain_line(error: BaseException) -> bool:
    return "\n" not in str(error) and not any(secret in str(error) for secret in SECRETS)


def test_the_second_to_make_an_object_loses_and_the_first_bytes_stay(bucket):
    version = storage.create(bucket / "part", b"first")
    assert version
    assert storage.create(bucket / "part", b"second") is None
    assert storage.read(bucket / "part") == (b"first", version)


def test_twenty_threads_that_make_one_object_have_one_winner(bucket):
    barrier = Barrier(20)

    def race(number: int) -> bool:
        barrier.wait()
        return storage.create(bucket / "part", b"%02d" % number) is not None

    with ThreadPoolExecutor(20) as pool:
        won = list(pool.map(race, range(20)))
    assert sum(won) == 1
    assert storage.read(bucket / "part")[0] == b"%02d" % won.index(True)


def test_an_object_is_swapped_only_while_it_is_of_the_version_that_was_read(bucket):
    old = storage.create(bucket / "lease", b"old")
    new = storage.swap(bucket / "lease", b"new", old)
    assert storage.swap(bucket / "lease", b"too late", old) is None
    assert storage.swap(bucket / "absent", b"x", old) is None
    assert storage.read(bucket / "lease") == (b"new", new)
    assert storage.names(bucket) == ["lease"]


def test_of_twenty_threads_that_swap_one_version_one_wins(bucket):
    version, barrier = storage.create(bucket / "lease", b"old"), Barrier(20)

    def race(number: int) -> bool:
        barrier.wait()
        return storage.swap(bucket / "lease", b"%02d" % number, version) is not None

    with ThreadPoolExecutor(20) as pool:
        won = list(pool.map(race, range(20)))
    assert sum(won) == 1
    assert storage.read(bucket / "lease")[0] == b"%02d" % won.index(True)


def test_a_writer_whose_answer_was_lost_finds_that_it_has_won(bucket, s3_proxy):
    s3_proxy.fault("lost answer", "PUT", "/part", times=2)
    version = storage.create(bucket / "part", b"mine")
    assert puts(s3_proxy, "part") == 3
    assert storage.read(bucket / "part") == (b"mine", version)
    s3_proxy.fault("lost answer", "PUT", "/part")
    swapped = storage.swap(bucket / "part", b"mine again", version)
    assert puts(s3_proxy, "part") == 5
    assert storage.read(bucket / "part") == (b"mine again", swapped)


def test_a_loser_whose_answer_was_lost_stays_a_loser(bucket, s3_proxy):
    version = storage.create(bucket / "part", b"theirs")
    storage.swap(bucket / "part", b"theirs", version)
    s3_proxy.fault("lost answer", "PUT", "/part", times=2)
    assert storage.create(bucket / "part", b"mine") is None
    assert storage.swap(bucket / "part", b"mine", '"another"') is None
    assert storage.read(bucket / "part")[0] == b"theirs"


@pytest.mark.parametrize("kind", ["slow down", "reset", "conflict"])
def test_a_write_that_the_service_puts_off_is_made_at_another_try(bucket, s3_proxy, kind):
    s3_proxy.fault(kind, "PUT")
    version = storage.create(bucket / "part", b"mine")
    assert puts(s3_proxy, "part") == 2
    assert storage.read(bucket / "part") == (b"mine", version)


@pytest.mark.parametrize(("kind", "method"), [("slow down", "HEAD"), ("reset", "GET"), ("cut", "GET")])
def test_a_read_that_the_service_breaks_off_is_made_at_another_try(bucket, s3_proxy, kind, method):
    table = pa.table({"x": list(range(10_000))})
    storage.publish_shard(bucket / "part.parquet", table)
    s3_proxy.fault(kind, method)
    assert storage.read_shard(bucket / "part.parquet").equals(table)
    s3_proxy.fault(kind, method)
    assert storage.exists(bucket / "part.parquet")
    assert storage.read(bucket / "part.parquet")[0] == storage.encode_shard(table)


CALLS: dict[str, Callable[[Place], Any]] = {
    "create": lambda place: storage.create(place, b"x"),
    "swap": lambda place: storage.swap(place, b"x", '"version"'),
    "replace": lambda place: storage.replace(place, b"x"),
    "read": storage.read,
    "remove": storage.remove,
    "names": storage.names,
    "exists": storage.exists,
    "modified_s": storage.modified_s,
    "sweep": storage.sweep,
    "read_shard": storage.read_shard,
    "read_schema": storage.read_schema,
    "row_counts": lambda place: storage.row_counts(place.parent, [place.name]),
}


@pytest.mark.parametrize("kind", ["expired", "denied"])
@pytest.mark.parametrize("call", CALLS)
def test_credentials_that_are_refused_are_said_in_one_line_without_a_secret(bucket, s3_proxy, kind, call):
    s3_proxy.fault(kind, times=99)
    with pytest.raises(StorageError, match=r"cannot \w+ s3://.*the credentials in the environment were ref") as caught:
        CALLS[call](bucket / "tiles" / "part.parquet")
    assert one_plain_line(caught.value)
    assert caught.value.__suppress_context__
    s3_proxy.rules.clear()
    assert storage.names(bucket) == []


def test_credentials_that_expire_between_two_requests_of_one_read_do_not_condemn_the_shard(bucket, s3_proxy):
    storage.publish_shard(bucket / "part.parquet", pa.table({"x": [1]}))
    s3_proxy.fault("expired", "GET", times=99)
    with pytest.raises(StorageError, match="the credentials in the environment were refused") as caught:
        storage.read_shard(bucket / "part.parquet")
    assert one_plain_line(caught.value)


@pytest.mark.parametrize("call", ["create", "read_shard", "names"])
def test_a_service_that_stays_busy_is_given_up_in_one_line(bucket, s3_proxy, monkeypatch, call):
    monkeypatch.setattr(s3, "ATTEMPTS", 2)
    s3_proxy.fault("slow down", times=99)
    with pytest.raises(StorageError, match=r"s3://.*the service answered .*; run the same command again") as caught:
        CALLS[call](bucket / "part.parquet")
    assert one_plain_line(caught.value)
    assert len(s3_proxy.seen) == 2


@pytest.mark.parametrize("call", ["create", "read_shard", "names"])
def test_an_endpoint_where_nobody_listens_is_said_in_one_line(bucket, monkeypatch, call):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setattr(s3, "ATTEMPTS", 1)
        with pytest.raises(StorageError, match=r"cannot \w+ s3://.*(connect|CONNECTION)") as caught:
            CALLS[call](bucket / "part.parquet")
    assert one_plain_line(caught.value)


@pytest.mark.parametrize("call", ["create", "replace", "read", "names", "sweep"])
def test_a_bucket_that_is_not_there_is_the_users_to_make(bucket, call):
    with pytest.raises(ConfigError, match="s3://nowhere/tiles: no such bucket"):
        CALLS[call](storage.place("s3://nowhere/tiles"))


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIAOFTHETEST:never-to-be-told@bucket/x",
        "s3://AKIAOFTHETEST:never/to-be-told@bucket/x",
        "s3://AKIAOFTHETEST@bucket/x",
        "s3://bucket/x?secret_key=never-to-be-told",
        "S3://AKIAOFTHETEST:never-to-be-told@bucket/x",
        "s3://",
    ],
)
def test_a_place_with_credentials_in_it_is_refused_and_not_repeated(text):
    with pytest.raises(ConfigError, match="s3://bucket/prefix") as caught:
        storage.place(text)
    assert one_plain_line(caught.value)
    assert "never" not in str(caught.value)


def test_a_big_shard_goes_in_parts_and_the_one_whose_answer_was_lost_has_won(bucket, s3_proxy, monkeypatch):
    monkeypatch.setattr(s3, "PART_BYTES", 5 * MIB)
    data = os.urandom(MIB) * 12
    s3_proxy.fault("lost answer", "POST", "?uploadId=")
    version = storage.create(bucket / "part.parquet", data)
    parts = {request.partition("partNumber=")[2][:1] for request in s3_proxy.seen if "partNumber=" in request}
    assert parts == {"1", "2", "3"}
    assert storage.read(bucket / "part.parquet") == (data, version)
    assert unfinished(bucket) == []


def test_the_loser_of_a_race_in_parts_leaves_the_winners_bytes_and_nothing_unfinished(bucket, monkeypatch):
    monkeypatch.setattr(s3, "PART_BYTES", 5 * MIB)
    barrier = Barrier(2)

    def race(byte: bytes) -> bool:
        barrier.wait()
        return storage.create(bucket / "part.parquet", byte * (6 * MIB)) is not None

    with ThreadPoolExecutor(2) as pool:
        won = list(pool.map(race, [b"a", b"b"]))
    assert sorted(won) == [False, True]
    assert storage.read(bucket / "part.parquet")[0] == b"ab"[won.index(True) :][:1] * (6 * MIB)
    assert unfinished(bucket) == []


def test_an_upload_that_another_run_gave_up_is_made_again(bucket, s3_proxy, monkeypatch):
    monkeypatch.setattr(s3, "PART_BYTES", 5 * MIB)
    s3_proxy.fault("upload gone", "POST", "?uploadId=")
    version = storage.create(bucket / "part.parquet", b"x" * (6 * MIB))
    assert storage.read(bucket / "part.parquet") == (b"x" * (6 * MIB), version)
    assert unfinished(bucket) == []


def test_sweep_gives_up_the_unfinished_uploads_of_one_table_alone(bucket):
    for key in ("a/t/part", "a/t/deep/part", "a/t2/part", "b/t/part"):
        s3._client().create_multipart_upload(Bucket=bucket.bucket, Key=key)
    assert storage.sweep(bucket / "a" / "t") == 2
    assert unfinished(bucket) == ["a/t2/part", "b/t/part"]


def test_three_thousand_shards_are_listed_in_order_and_what_is_no_shard_is_left_out(bucket, s3_proxy):
    names = [f"part-{number:05d}.parquet" for number in range(3000)]

    server = http.client.HTTPConnection("127.0.0.1", s3_proxy.upstream_port)
    server.request("SEED", f"/{bucket.bucket}", json.dumps([f"a/tiles/{name}" for name in reversed(names)]))
    assert server.getresponse().status == 204
    for name in (".lease.json", "note", "deep/part-1.parquet"):
        storage.create(bucket / "a" / "tiles" / name, b"")
    assert storage.shards(bucket / "a" / "tiles") == names
    assert storage.names(bucket / "a" / "tiles") == [".lease.json", "deep", "note", *names]
    assert storage.tables(bucket / "a") == ["tiles"]
    assert storage.shards(bucket / "a" / "absent") == []


def test_columns_of_a_shard_are_read_as_they_were_published(bucket):
    schema = storage.with_made_by(pa.schema([("tile_id", pa.string()), ("failure", pa.string())]), {"table": "t"})
    table = pa.Table.from_pylist([{"tile_id": "a"}, {"tile_id": "b", "failure": "failed:x"}], schema=schema)
    assert storage.publish_shard(bucket / "a" / "part.parquet", table)
    assert storage.publish_shard(bucket / "a" / "part.parquet", table.slice(1)) is False
    assert storage.read_shard(bucket / "a" / "part.parquet").equals(table)
    assert storage.read_shard(bucket / "a" / "part.parquet", ["failure"]).column_names == ["failure"]
    assert storage.row_counts(bucket / "a", ["part.parquet"] * 2) == [2, 2]
    assert storage.made_by(storage.read_schema(bucket / "a" / "part.parquet")) == {"table": "t"}


def test_an_absent_shard_is_worth_another_try_and_a_broken_one_is_not(bucket):
    with pytest.raises(StorageError, match=r"s3://.*absent\.parquet: there is no such object"):
        storage.read_shard(bucket / "absent.parquet")
    for number, data in enumerate([b"", b"garbage", b"PAR1" + b"\0" * 50 + b"PAR1"]):
        storage.create(bucket / f"part-{number}.parquet", data)
        for read in (storage.read_shard, storage.read_schema):
            with pytest.raises(SchemaError, match=r"part-\d\.parquet is not a shard") as caught:
                read(bucket / f"part-{number}.parquet")
            assert one_plain_line(caught.value)
    storage.publish_shard(bucket / "part.parquet", pa.table({"x": [1]}))
    with pytest.raises(SchemaError, match="vector"):
        storage.read_shard(bucket / "part.parquet", ["vector"])


def test_what_is_absent_is_neither_read_nor_found_and_may_be_removed(bucket):
    assert storage.read(bucket / "x") is None
    assert storage.age_s(bucket / "x") == float("inf")
    assert not storage.exists(bucket / "x")
    storage.remove(bucket / "x")
    storage.replace(bucket / "x", b"old")
    storage.replace(bucket / "x", b"new")
    assert storage.exists(bucket / "x")
    assert 0 <= storage.age_s(bucket / "x") < 60
    assert abs(storage.modified_s(bucket / "x") - time.time()) < 60
    storage.remove(bucket / "x")
    assert storage.names(bucket) == []
    with pytest.raises(ConfigError, match=r"--archive s3://.*: nothing is there"):
        storage.archive(str(bucket / "x"))


@pytest.mark.usefixtures("interruptible")
def test_a_lease_has_one_holder_and_the_next_takes_it_when_it_is_let_go(bucket):
    with lease.held(bucket / "t"):
        with pytest.raises(
            LeaseError, match=rf"t is being written by process {os.getpid()} on .*wait for it"
        ) as caught:
            lease.Lease(bucket / "t")
        assert one_plain_line(caught.value)
    with lease.held(bucket / "t"):
        assert json.loads(storage.read(bucket / "t" / lease.LEASE)[0])["process"] == os.getpid()
    assert json.loads(storage.read(bucket / "t" / lease.LEASE)[0]) == {"released": True}


@pytest.mark.usefixtures("interruptible")
def test_of_ten_that_want_a_lease_one_gets_it(bucket):
    barrier = Barrier(10)

    def take(_: int) -> lease.Lease | None:
        barrier.wait()
        try:
            return lease.Lease(bucket / "t")
        except LeaseError:
            return None

    with ThreadPoolExecutor(10) as pool:
        (held,) = filter(None, pool.map(take, range(10)))
    held.let_go()


@pytest.mark.usefixtures("interruptible")
def test_a_holder_that_fell_silent_is_replaced_and_no_sooner(bucket, monkeypatch):
    storage.create(bucket / "t" / lease.LEASE, ELSEWHERE)
    monkeypatch.setattr(lease, "SILENT_S", 1.0)
    with pytest.raises(LeaseError, match="is being written by process 7 on elsewhere"):
        lease.Lease(bucket / "t")
    time.sleep(2.1)  # S3 tells times in whole seconds
    with lease.held(bucket / "t"):
        assert b"elsewhere" not in storage.read(bucket / "t" / lease.LEASE)[0]


@pytest.mark.usefixtures("interruptible")
def test_a_holder_renews_through_faults_and_is_not_taken_for_silent(bucket, s3_proxy, monkeypatch):
    monkeypatch.setattr(lease, "SILENT_S", 3.0)
    monkeypatch.setattr(lease, "RENEW_S", 0.1)
    with lease.held(bucket / "t") as held:
        s3_proxy.fault("lost answer", "PUT", lease.LEASE, times=2)
        s3_proxy.fault("expired", "PUT", lease.LEASE, times=3, after=2)
        time.sleep(3.5)
        held.check()
        assert puts(s3_proxy, lease.LEASE) > 6
        with pytest.raises(LeaseError, match="is being written"):
            lease.Lease(bucket / "t")


@pytest.mark.usefixtures("interruptible")
def test_a_holder_whose_lease_was_taken_over_stops_and_leaves_it_to_the_other(bucket, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_S", 0.1)
    with pytest.raises(LeaseError, match="t was taken over by another run"):
        lose_and_work_on(bucket / "t")
    assert storage.read(bucket / "t" / lease.LEASE)[0] == ELSEWHERE


def lose_and_work_on(table: Place) -> None:
    with lease.held(table):
        storage.replace(table / lease.LEASE, ELSEWHERE)
        time.sleep(20)
        pytest.fail("nobody interrupted the main thread")


@pytest.mark.parametrize(
    "endpoint", ["http://user:hunter2@127.0.0.1:9", "127.0.0.1:9", "ftp://host", "http://h?key=hunter2"]
)
def test_an_endpoint_that_is_none_or_holds_a_secret_is_refused_without_repeating_it(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    s3._client.cache_clear()
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL: want http://host:port") as caught:
        s3.names(s3.S3Path("bucket", "x"))
    assert "hunter2" not in str(caught.value)
    s3._client.cache_clear()

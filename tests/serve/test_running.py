"""`urbancross serve` as its users start it: a process, a port, an end; and nothing of the archive is changed."""

import json
import re
import shutil
import signal
import socket
from pathlib import Path

import pytest
import served
from served import ask, tree
from starlette.testclient import TestClient

from urbancross import cli, runs, storage
from urbancross.config import ServeConfig
from urbancross.errors import ConfigError
from urbancross.serve import running
from urbancross.serve.library import opened
from urbancross.serve.running import listening, url_of

QUERY = b'{"text": "a lake", "like": [3], "top": 3}'


def asked_of_all(port: int) -> None:
    """One request of each kind."""
    for method, path, body in (
        ("GET", "/api/archive", None),
        ("GET", "/api/places", None),
        ("POST", "/api/search", QUERY),
        ("POST", "/api/download?format=parquet", QUERY),
        ("POST", "/api/pictures", served.encoded(served.pixels(3))),
        ("GET", "/api/tiles/3/picture", None),
        ("GET", "/api/tiles/3/segments", None),
    ):
        response, told = ask(port, method, path, body)
        assert response.status == 200, (path, told)


def test_an_archive_that_may_only_be_read_is_served_and_stays_as_it_is(place: Path, tmp_path: Path):
    archive = Path(shutil.copytree(place, tmp_path / "a"))
    shutil.rmtree(archive / "runs", ignore_errors=True)
    for path in [archive, *archive.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    before = tree(archive)
    with served.process("--archive", str(archive)) as (server, port):
        asked_of_all(port)
        response, told = ask(port, "GET", "/api/archive")
        assert [model["key"] for model in json.loads(told)["models"]] == ["after", "before"]
        assert "server" not in {name.lower() for name in response.headers}
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=20) == 0
        assert server.stderr is not None
        assert "Traceback" not in server.stderr.read()
    assert tree(archive) == before
    for path in [archive, *archive.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200)


def test_an_archive_on_s3_is_served_and_stays_as_it_is(
    place: Path, bucket: storage.Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for path in sorted(place.rglob("*")):
        if path.is_file():
            storage.replace(bucket / "a" / path.relative_to(place).as_posix(), path.read_bytes())
    before = everything(bucket / "a")
    with served.process(
        "--archive", f"{bucket}/a", "--embeddings", "before", "--host", "0.0.0.0", XDG_CACHE_HOME=str(tmp_path)
    ) as (server, port):
        asked_of_all(port)
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=20) == 0
        assert server.stderr is not None
        said = server.stderr.read()
        assert "--host 0.0.0.0: whoever reaches this address can read the whole archive" in said
        assert "Traceback" not in said
    assert everything(bucket / "a") == before


def everything(folder: storage.Place) -> dict[str, str]:
    """Versions of all objects of an archive."""
    found = {}
    for table in storage.names(folder):
        for name in storage.names(folder / table):
            read = storage.read(folder / table / name)
            found[f"{table}/{name}"] = read[1] if read else ""
    return found


def test_no_run_is_recorded_however_long_it_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runs, "SECONDS_BETWEEN_KEEPS", 0.0)  # a note after a minute would be kept

    def note(config: ServeConfig) -> None:
        running.say("a note")

    monkeypatch.setattr(running, "serve", note)
    before = tree(place)
    assert cli.call("serve", ServeConfig(archive=str(place))) is None
    assert tree(place) == before


def test_ctrl_c_while_models_are_loaded_is_an_end_like_any(place: Path, monkeypatch: pytest.MonkeyPatch):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "opened", stopped)
    cli.main("serve", ["--archive", str(place), "--port", "0"])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which the verb ends, by exit code 2."""
    with pytest.raises(SystemExit) as ended:
        cli.main("serve", list(arguments))
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_port_that_is_taken_is_told_in_one_line(place: Path, capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused(capsys, "--archive", str(place), "--port", str(port))
    assert re.fullmatch(rf"jobs/serve.py: --port {port} of 127.0.0.1: .* in use; give another, or 0 for any", line)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid: no such address"),
        (["--host", "a" * 300], "no such address"),
        (["--embeddings", "none"], "has no embeddings@none; it has embeddings@after, embeddings@before"),
        (["--port", "70000"], "--port: Input should be less than or equal to 65535"),
        (["--max-upload-mib", "0"], "--max-upload-mib"),
        (["--requests-per-second", "-1"], "--requests-per-second"),
        (["--checkpoint", "no-such-checkpoint"], "no-such-checkpoint: neither a checkpoint folder nor a model"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], wanted: str
):
    assert wanted in refused(capsys, "--archive", str(place), "--port", "0", *arguments)


def test_an_archive_without_embeddings_is_told_what_to_make(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "no such folder" in refused(capsys, "--archive", str(tmp_path / "nowhere"), "--port", "0")
    assert "make one first with urbancross embed" in refused(capsys, "--archive", str(tmp_path), "--port", "0")


def test_a_table_whose_checkpoint_is_gone_is_left_out_or_found_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    models = served.models_in(tmp_path)
    archive = served.made(tmp_path / "a", models, indexed=False)
    (tmp_path / "after").rename(tmp_path / "moved")
    library, left_out = opened(str(archive))
    assert list(library.archives) == ["before"]
    (line,) = left_out
    assert line.startswith("embeddings@after is left out: ")
    assert "\n" not in line
    with pytest.raises(ConfigError):
        opened(str(archive), ["after"])
    library, left_out = opened(str(archive), given=[f"local-dir:{tmp_path / 'moved'}"])
    assert (list(library.archives), left_out) == (["after", "before"], [])
    told = TestClient(served.application(library), base_url="http://127.0.0.1").get("/api/archive").text
    assert str(tmp_path) not in told
    (tmp_path / "before").rename(tmp_path / "gone")
    with pytest.raises(ConfigError, match="before is left out"):
        opened(str(archive))


def test_an_address_is_told_as_browsers_take_it():
    assert (url_of("127.0.0.1", 80), url_of("::1", 8000)) == ("http://127.0.0.1:80", "http://[::1]:8000")


@pytest.mark.parametrize(("host", "loopback"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)])
def test_only_the_loopback_is_nobody_elses(host: str, loopback: bool):
    with listening(host, 0) as found:
        assert running.is_loopback(found) == loopback

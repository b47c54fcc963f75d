"""`caption --engine openai`: a scripted server for what servers do wrong, and a real vLLM server."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from tiny_vlm import build

from tests.distributed.test_vllm import make_archive, rows_of
from urbancross import cli
from urbancross.captions.captioner import Question
from urbancross.command_line import from_command_line
from urbancross.config import CaptionConfig
from urbancross.distributed.openai_engine import OpenAiEngine
from urbancross.errors import ConfigError, EngineError, TileError

PNG, PIXELS = b"\x89PNG", np.zeros((1, 1, 3), np.uint8)
ANSWER = json.dumps({"description": "A park.", "land_use": "recreation", "objects": []})


class Server(ThreadingHTTPServer):
    """Answers every request with the next of its script: (status, headers, message); at its end with captions."""

    script: list[tuple[int, dict[str, str], str | bytes]]
    asked: list[dict]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers["Authorization"]
        self.server.asked.append({"path": self.path, "at": time.monotonic(), "key": key, **told})
        status, headers, text = self.server.script.pop(0) if self.server.script else (200, {}, ANSWER)
        choice = {"index": 0, "message": {"role": "assistant", "content": str(text)}}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        data = json.dumps(body if status == 200 else {"error": {"message": text}}).encode()
        data = text if isinstance(text, bytes) else data
        self.send_response(status)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server(("127.0.0.1", 0), Handler)
    found.script, found.asked = [], []
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()


def engine(server: Server, **more) -> OpenAiEngine:
    told = {"temperature": 0.7, "max_tokens": 99, "max_chars": 60, "concurrency": 4, "timeout_s": 5, "retry_minutes": 1}
    return OpenAiEngine(f"http://127.0.0.1:{server.server_port}/v1", "m", **{**told, **more})


def ask(engine: OpenAiEngine, count: int = 1) -> list[str | TileError]:
    return engine([Question(PNG, PIXELS, "of this tile", seed) for seed in range(count)])


def test_a_question_has_the_image_the_schema_and_its_seed(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert ask(engine(server), 3) == [ANSWER] * 3
    assert sorted(told["seed"] for told in server.asked) == [0, 1, 2]
    told = server.asked[0]
    assert (told["path"], told["key"]) == ("/v1/chat/completions", "Bearer k")
    assert (told["model"], told["max_tokens"]) == ("m", 99)
    assert told["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")
    assert told["response_format"]["json_schema"]["schema"]["required"] == ["description", "land_use", "objects"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again_when_it_says(server, status):
    server.script = [(status, {"Retry-After": "1.5"}, "busy")]
    assert ask(engine(server)) == [ANSWER]
    first, second = server.asked
    assert 1.4 < second["at"] - first["at"] < 5
    assert first["seed"] == second["seed"]


@pytest.mark.parametrize("status", [400, 402, 500])
def test_a_server_that_quotes_the_key_does_not_make_us_tell_it(server, status, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "very-secret")
    server.script = [(status, {"Retry-After": "0"}, "no: Bearer very-secret, Basic dXNlcg==")] * 99
    try:
        told = str(ask(engine(server, retry_minutes=0.001))[0])
    except EngineError as error:
        told = str(error)
    assert "no: Bearer ... Basic ..." in told
    assert "secret" not in told


@pytest.mark.parametrize("body", [b"<html></html>", b"[1]", b'{"choices": [{}]}', b'{"choices": "abc"}', b"{}", b""])
def test_what_is_no_chat_completion_is_bad_input_at_first_and_a_busy_server_later(server, body):
    server.script = [(200, {}, body)]
    with pytest.raises(ConfigError, match="does --endpoint end in /v1"):
        ask(engine(server))
    asking = engine(server)
    server.script = [(200, {}, ANSWER), (200, {}, body)]
    assert ask(asking) + ask(asking) == [ANSWER] * 2
    assert not server.script


def test_a_pause_that_is_no_number_is_passed_over(server):
    server.script = [(429, {"Retry-After": "nan"}, "busy")]
    assert ask(engine(server)) == [ANSWER]


def test_every_answer_is_a_step_so_that_a_long_batch_is_no_stall(server):
    steps = []
    asking = engine(server)
    asking.went_on = lambda: steps.append(len(server.asked))
    ask(asking, 3)
    assert len(steps) == 3


def test_a_date_to_wait_for_is_understood(server):
    server.script = [(429, {"Retry-After": formatdate(time.time() + 2, usegmt=True)}, "busy")]
    assert ask(engine(server)) == [ANSWER]
    assert server.asked[1]["at"] - server.asked[0]["at"] > 0.5


def test_a_server_that_stays_busy_stops_the_stage_and_fails_no_tile(server):
    server.script = [(503, {"Retry-After": "0.2"}, "busy")] * 100
    with pytest.raises(EngineError, match=r"gave no answer in 0.01 minutes \(503 busy\)"):
        ask(engine(server, retry_minutes=0.01))
    assert len(server.asked) > 2
    server.script = [(429, {"Retry-After": "3600"}, "quota")]
    started = time.monotonic()
    with pytest.raises(EngineError, match="429 quota"):
        ask(engine(server))  # what it asks for is beyond the budget: no use waiting
    assert time.monotonic() - started < 10


def test_a_server_that_is_away_stops_the_stage():
    port = free_port()
    lost = OpenAiEngine(f"http://127.0.0.1:{port}/v1", "m", 0.7, 9, 60, 1, 1, retry_minutes=0)
    with pytest.raises(EngineError, match="gave no answer"):
        ask(lost)


def test_a_question_that_the_server_refuses_costs_one_row(server):
    server.script = [(400, {}, "prompt is too long: 9000 tokens")]
    answers = ask(engine(server, concurrency=1), 3)
    assert isinstance(answers[0], TileError)
    assert "400 prompt is too long" in str(answers[0])
    assert answers[1:] == [ANSWER] * 2
    assert len(server.asked) == 3


@pytest.mark.parametrize(("status", "message"), [(401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "no model m")])
def test_a_wrong_key_or_model_is_bad_input(server, status, message, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "very-secret")
    server.script = [(status, {}, "no")] * 9
    with pytest.raises(ConfigError, match=message) as error:
        ask(engine(server))
    assert "very-secret" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--endpoint", "http://user:pw@host/v1"], "without a password"),
        (["--endpoint", "host:8000"], "wants an http"),
        ([], "wants --endpoint"),
    ],
)
def test_an_endpoint_is_a_url_without_secrets(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        from_command_line(CaptionConfig, ["--archive", "a", "--engine", "openai", "--model", "m", *flags], "caption")
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert message in told
    assert "pw" not in told


@pytest.mark.ray
def test_tiles_are_captioned_over_the_network(server, tmp_path, ray_session):
    archive = make_archive(tmp_path / "a")
    endpoint = f"http://127.0.0.1:{server.server_port}/v1"
    told = CaptionConfig(
        archive=str(archive), engine="openai", model="m", name="tiny-vlm", endpoint=endpoint, workers=1, tags=False
    )
    balance = cli.call("caption", told)
    assert (balance.written, balance.failed) == (61, 3)  # the long tag is not told
    assert {row["captions"][0] for row in rows_of(archive) if not row["failure"]} == {"A park."}


@pytest.mark.slow
@pytest.mark.ray
def test_a_real_vllm_server_writes_captions_that_parse(tmp_path, ray_session):
    build(tmp_path / "tiny-vlm")
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tmp_path / "tiny-vlm")]
    command += ["--served-model-name", "tiny-vlm", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", "1024", "--max-num-seqs", "16", "--enforce-eager"]
    command += [
        "--kv-cache-memory-bytes",
        str(64 << 20),
        "--no-enable-chunked-prefill",
        "--limit-mm-per-prompt",
        '{"image": 1, "video": 0}',
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    archive = make_archive(tmp_path / "a")
    with open(tmp_path / "log", "w") as log:
        program = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", program)
        endpoint = f"http://127.0.0.1:{port}/v1"
        told = CaptionConfig(
            archive=str(archive), engine="openai", model="tiny-vlm", endpoint=endpoint, workers=1, max_chars=60,
            on_contradiction="keep", concurrency=16,
        )  # fmt: skip
        balance = cli.call("caption", told)
    finally:
        program.terminate()
        program.wait(30)
    assert (balance.written, balance.failed) == (60, 4), (tmp_path / "log").read_text()[-2000:]
    done = [row for row in rows_of(archive) if not row["failure"]]
    assert all(3 <= len(row["captions"][0]) <= 60 and row["land_use"] for row in done)
    assert len({row["captions"][0] for row in done}) == 60


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def wait_for(url: str, program: subprocess.Popen) -> None:
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        assert program.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError(f"waited in vain for {url}")

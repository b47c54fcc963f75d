import pytest

from urbancross import cli, runs
from urbancross.errors import ConfigError, WorkerError
from urbancross.progress import heard_by, meter, say
from urbancross.runs import Balance


def test_the_balance_line_has_the_promised_form():
    balance = Balance(read=9000, written=8120, done_before=870, failed=10)
    assert str(balance) == "read 9,000 = written 8,120 + done before 870 + failed 10"


def test_skipped_tiles_stand_in_the_line_only_where_there_are_some():
    balance = Balance(read=1234567, written=1230000, done_before=0, skipped=4560, failed=7)
    assert str(balance) == "read 1,234,567 = written 1,230,000 + done before 0 + skipped 4,560 + failed 7"
    assert str(Balance()) == "read 0 = written 0 + done before 0 + failed 0"


@pytest.mark.parametrize("lost", ["written", "done_before", "skipped", "failed"])
def test_a_balance_that_does_not_add_up_says_so(lost):
    counts = {"written": 1, "done_before": 2, "skipped": 3, "failed": 4}
    assert Balance(read=10, **counts).balances
    short = Balance(read=10, **counts | {lost: 0})
    assert not short.balances
    assert str(short).startswith("read 10 ≠ written")


def test_balances_add_by_column_and_keep_the_files_of_both():
    first = Balance(10, 1, 2, 3, 4).with_files(metrics={"mR": 0.1})
    both = first + Balance(100, 10, 20, 30, 40).with_files(plan=[1])
    assert both == Balance(110, 11, 22, 33, 44)
    assert both.files == {"metrics": {"mR": 0.1}, "plan": [1]}
    assert first.files == {"metrics": {"mR": 0.1}}


def test_failures_are_told_apart_by_how_they_begin():
    counts = runs.count_failures([None, "skipped:blank", "failed:truncated", None, "failed:skipped:odd", "skipped:x"])
    assert counts.pop("reasons") == {"truncated": 1, "skipped": 1}
    assert counts.pop("skips") == {"blank": 1, "x": 1}
    assert counts == {"written": 2, "skipped": 2, "failed": 2}


def test_failures_of_one_kind_are_counted_together_whatever_differs_from_tile_to_tile():
    failures = ["failed:20000 x 3 px, at most 8192 a side wanted", "failed:9000 x 7 px, at most 8192 a side wanted"]
    failures += ["failed:corrupt image: broken data stream (-2)", "failed:corrupt image: image file is truncated"]
    counts = runs.count_failures([*failures, "skipped:blank", None])
    assert runs.most_common(counts["reasons"]) == "2 × n x n px, at most n a side wanted, 2 × corrupt image"


def test_a_budget_is_a_share_of_the_tiles_or_a_count_of_them():
    assert runs.allowed_failures("5%", 200) == 10
    assert runs.allowed_failures("0.5%", 200) == 1
    assert runs.allowed_failures("7", 200) == 7
    assert runs.allowed_failures(None, 200) is None
    assert runs.count_failures([]) == {"written": 0, "skipped": 0, "failed": 0, "reasons": {}, "skips": {}}


def test_recorded_runs_come_back_oldest_first_with_their_stage(tmp_path):
    home = tmp_path / "northland"
    ingest = Balance(read=3, written=2, failed=1)
    embed = Balance(read=3, done_before=2, skipped=1).with_files(metrics={"mR": 0.5})
    runs.record(home, "ingest", {"source": "set", "seed": 7}, ingest)
    folder = runs.record(home, "embed", {"checkpoint": "starter"}, embed)
    assert runs.balances(home) == [
        {
            "stage": "ingest",
            "archive": "northland",
            "read": 3,
            "written": 2,
            "done_before": 0,
            "skipped": 0,
            "failed": 1,
        },
        {
            "stage": "embed starter",
            "archive": "northland",
            "read": 3,
            "written": 0,
            "done_before": 2,
            "skipped": 1,
            "failed": 0,
        },
    ]
    assert folder.parent == home / "runs"
    assert runs.storage.read_json(folder / "config.json", "run") == {"verb": "embed", "checkpoint": "starter"}
    assert runs.storage.read_json(folder / "metrics.json", "run") == {"mR": 0.5}
    assert sorted(path.name for path in folder.iterdir()) == ["balance.json", "config.json", "metrics.json"]


def test_a_home_without_runs_has_no_balances(tmp_path):
    assert runs.balances(tmp_path) == []


def test_events_come_back_line_by_line(tmp_path):
    events = [{"step": 1, "loss": 0.5}, {"step": 2, "note": "line\nbreak \u2028 é"}]
    (tmp_path / "events.jsonl").write_bytes(runs.event_lines(events))
    assert (tmp_path / "events.jsonl").read_bytes().count(b"\n") == 2
    assert runs.read_events(tmp_path / "events.jsonl") == events
    assert runs.read_events(tmp_path / "absent.jsonl") == []


def test_a_journal_keeps_what_was_said_once_a_minute_and_no_folder_where_there_is_no_archive(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])
    journal = runs.Journal(tmp_path / "home", "embed", {"workers": 2})
    with heard_by(journal.hear):
        say("note: one")
        now[0] = 61.0
        say("note: two")
        assert not (tmp_path / "home").exists()
        (tmp_path / "home" / "plan").mkdir(parents=True)
        now[0] = 122.0
        with meter("embeddings@x of home", 8) as work:
            work.add(8)
    said = [{name: value for name, value in event.items() if name != "at"} for event in read(journal)]
    assert said == [
        {"began": "embed"},
        {"said": "note: one"},
        {"said": "note: two"},
        {"what": "embeddings@x of home", "done": 8, "total": 8, "unit": "tiles"},
    ]
    assert runs.storage.read_json(journal.run / runs.CONFIG, "run") == {"verb": "embed", "workers": 2}
    say("nobody hears it")
    assert len(journal.events) == 4


def read(journal: runs.Journal) -> list[dict]:
    return runs.read_events(journal.run / runs.EVENTS)


def test_a_run_that_is_stopped_leaves_its_settings_and_why_and_bad_input_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "archive" / "tiles").mkdir(parents=True)
    monkeypatch.setattr(cli, "VERBS", {"segment": cli.Verb(cli.VERBS["segment"].kind, f"{__name__}:stopped")})
    config = cli.VERBS["segment"].kind(archive=str(tmp_path / "archive"), engine="grid", workers=1)
    for kind in (ConfigError, WorkerError):
        monkeypatch.setitem(globals(), "ending", kind("the <end> of it"))
        with pytest.raises(kind):
            cli.call("segment", config)
    (run,) = (tmp_path / "archive" / "runs").iterdir()
    assert sorted(path.name for path in run.iterdir()) == ["config.json", "events.jsonl", "report.html"]
    _, said, ended = runs.read_events(run / "events.jsonl")
    assert (said["said"], ended["ended"], ended["why"]) == ("on its way", "stopped", "the <end> of it")
    page = (run / "report.html").read_text()
    assert "stopped: the &lt;end&gt; of it" in page
    assert "on its way" in page
    assert runs.balances(tmp_path / "archive") == []


ending: Exception = ConfigError("")


def stopped(config):
    say("on its way")
    raise ending

"""Flags to settings: one line on what is wrong, and nothing from the environment unseen."""

import json
from pathlib import Path

import pytest

from urbancross import cli, config, storage
from urbancross.command_line import from_command_line
from urbancross.config import ReportConfig
from urbancross.errors import CheckpointError, ConfigError, SchemaError, StorageError, TrainingError
from urbancross.runs import Balance, balances


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_every_verb_explains_every_flag(verb: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        cli.main(None, [verb, "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    for name, field in cli.VERBS[verb].kind.model_fields.items():
        assert field.description, f"{verb}: {name} has no docstring"
        flag = (field.alias or name).replace("_", "-")
        assert f"--{flag}" in told or flag.upper() in told


def test_a_job_page_and_the_command_share_their_settings(capsys: pytest.CaptureFixture[str]):
    for verb in (None, "embed"):
        with pytest.raises(SystemExit):
            cli.main(verb, ["--help"] if verb else ["embed", "--help"])
    first, second = capsys.readouterr().out.split("usage: ")[1:]
    assert first.startswith("urbancross embed")
    assert second.startswith("jobs/embed.py")
    options = [text.split("options:")[1] for text in (first, second)]
    assert options[0].split() == options[1].split()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (
            ["search", "--archive", "a", "x", "--top", "0"],
            "urbancross search: --top: Input should be greater than 0, got '0'",
        ),
        (["search", "x"], "urbancross search: --archive: Field required"),
        (["search", "--archive", "a", "x", "--topp", "3"], "unrecognized arguments: --topp"),
        (["evaluate", "--archive", "a", "--checkpoint", "c", "--split", "tset"], "--split: "),
        (["sarch"], "urbancross sarch: no such verb; one of ingest, "),
    ],
)
def test_a_flag_that_does_not_fit_gets_one_line(arguments: list[str], wanted: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        cli.main(None, arguments)
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert told.out == ""
    assert wanted in told.err
    assert len(told.err.splitlines()) == 1


def test_no_setting_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SEED", "7")
    monkeypatch.setenv("WORKERS", "9")
    read = from_command_line(config.EmbedConfig, ["--archive", "a", "--checkpoint", "c"], "urbancross embed")
    assert read.workers != 9
    assert config.CaptionConfig(archive="a").seed == 0


def test_a_flag_reaches_its_field():
    read = from_command_line(
        config.SearchConfig, ["--archive", "a", "two words", "--json", "--bbox", "1,2,3,4"], "urbancross search"
    )
    assert (read.text, read.json_, read.bbox, read.top) == ("two words", True, "1,2,3,4", 10)


def test_a_value_that_begins_with_a_minus_is_no_flag():
    def bbox(*flags: str) -> str | None:
        told = ["--archive", "a", "boats", *flags, "--top", "2"]
        return from_command_line(config.SearchConfig, told, "urbancross search").bbox

    assert bbox("--bbox", "-3.2,55.9,-3.1,56.0") == "-3.2,55.9,-3.1,56.0"
    assert bbox("--bbox=-3.2,55.9,-3.1,56.0") == "-3.2,55.9,-3.1,56.0"


def test_each_of_several_wrong_flags_has_its_line(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.main(None, ["search", "--top", "0", "--archive"])
    with pytest.raises(SystemExit):
        cli.main(None, ["search", "--top", "0", "x"])
    one, *two = capsys.readouterr().err.splitlines()
    assert "--archive: expected one argument" in one
    assert [line.split(": ")[1] for line in two] == ["--archive", "--top"]


def test_an_archive_in_the_environment_is_not_the_archive(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("ARCHIVE", "elsewhere")
    monkeypatch.setenv("archive", "elsewhere")
    with pytest.raises(SystemExit):
        cli.main(None, ["search", "x"])
    assert "--archive: Field required" in capsys.readouterr().err
    with pytest.raises(ValueError, match="archive"):
        config.SearchConfig(text="x")


def test_settings_cannot_be_changed_or_invented():
    told = config.SearchConfig(archive="a", text="x")
    with pytest.raises(ValueError, match="frozen"):
        told.top = 3
    with pytest.raises(ValueError, match="colour"):
        config.SearchConfig(archive="a", text="x", colour="red")


def test_the_list_of_verbs_says_what_each_is_for(capsys: pytest.CaptureFixture[str]):
    for arguments, code in ((["--help"], 0), ([], 2)):
        with pytest.raises(SystemExit) as ended:
            cli.main(None, arguments)
        assert ended.value.code == code
        told = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[2:]]
        assert told == [[name, (verb.kind.__doc__ or "").splitlines()[0]] for name, verb in cli.VERBS.items()]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("x"), 2, "x"),
        (SchemaError("x"), 2, "x"),
        (CheckpointError("x"), 2, "x"),
        (StorageError("x"), 1, "x"),
        (TrainingError("x"), 1, "x"),
        (KeyboardInterrupt(), 1, "stopped; run the same command again to go on"),
    ],
)
def test_what_is_raised_on_purpose_becomes_one_line_and_the_promised_code(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "call", refuse)
    with pytest.raises(SystemExit) as ended:
        cli.main("search", ["--archive", "a", "x"])
    assert ended.value.code == code
    assert capsys.readouterr() == ("", f"jobs/search.py: {line}\n")


def test_a_bug_is_not_dressed_up_as_bad_input(monkeypatch: pytest.MonkeyPatch):
    def break_down(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "call", break_down)
    with pytest.raises(ZeroDivisionError):
        cli.main("search", ["--archive", "a", "x"])


def test_a_balance_is_the_last_line_and_stands_in_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("urbancross.search.run", lambda told: Balance(read=2, written=1, failed=1))
    cli.main(None, ["search", "--archive", str(tmp_path / "north"), "x"])
    assert capsys.readouterr().out == "read 2 = written 1 + done before 0 + failed 1\n"
    (found,) = balances(tmp_path / "north")
    assert (found["stage"], found["written"], found["failed"]) == ("search", 1, 1)
    (file,) = tmp_path.glob("north/runs/*/config.json")
    told = storage.read_json(file, "run")
    assert (told["verb"], told["text"], told["top"]) == ("search", "x", 10)


def test_a_query_keeps_its_commas_and_quotes():
    flags = [f"--{name}=x" for name in ("source", "target", "before", "after", "metrics-before", "metrics-after")]
    queries = ["--queries", "several planes, parked", '--queries=say "hi" there']
    told = from_command_line(ReportConfig, [*flags, *queries], "report")
    assert told.queries == ["several planes, parked", 'say "hi" there']


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--name", "../evil"], "--name: want letters, digits"),
        (["--no-tags", "--shuffle-tags"], "--shuffle-tags wants tags"),
        (["--engine", "vllm"], "--engine vllm wants --model"),
        (["--engine-args", "{a"], "--engine-args is no JSON"),
    ],
)
def test_captioning_that_cannot_work_is_refused_in_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        from_command_line(config.CaptionConfig, ["--archive", "a", *flags], "caption")
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        ("segment", ["--engine", "grid", "--sha256", "deadbeef"], "--sha256 means nothing to --engine grid"),
        ("segment", ["--mode", "fast"], "--mode means nothing to --engine felzenszwalb"),
        ("segment", ["--checkpoint", "s.pth"], "go together"),
        ("pretrain", ["--out", "o", "--min-score", "0.5"], "mean nothing without --order caption"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(kind, flags, message, capsys):
    of = {"segment": config.SegmentConfig, "pretrain": config.PretrainConfig}[kind]
    with pytest.raises(SystemExit) as stop:
        from_command_line(of, ["--archive", "a", *flags], kind)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def settings_file(folder: Path, text: str, name: str = "settings.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_settings_come_from_a_file_and_flags_go_first(tmp_path: Path):
    file = settings_file(tmp_path, "archive: a\nhead-epochs: 3\nhead_batch: 8\nout: here\ncompile: true\n")
    told = from_command_line(config.PretrainConfig, ["--config", file, "--out", "there", "--head-batch=9"], "pretrain")
    assert (told.archive, told.head_epochs, told.head_batch, told.out, told.compile) == ("a", 3, 9, "there", True)
    assert told.model_fields_set == {"archive", "head_epochs", "head_batch", "out", "compile"}


def test_a_file_may_be_json_and_hold_lists_and_names_that_flags_know(tmp_path: Path):
    places = dict.fromkeys(("source", "target", "before", "after", "metrics-before", "metrics-after"), "x")
    file = settings_file(tmp_path, json.dumps(places | {"queries": ["a, b", "c"]}), "settings.json")
    assert from_command_line(ReportConfig, [f"--config={file}"], "report").queries == ["a, b", "c"]
    told = from_command_line(ReportConfig, ["--config", file, "--queries", "mine, alone"], "report")
    assert told.queries == ["mine, alone"]
    file = settings_file(tmp_path, "{archive: a, text: boats, json: true}")
    assert from_command_line(config.SearchConfig, ["--config", file], "search").json_


def test_a_method_of_a_file_gives_way_to_flags(tmp_path: Path):
    file = settings_file(tmp_path, "{checkpoint: c, source: a, target: b, method: urbancross, ratio: 2}")
    told = from_command_line(config.AdaptConfig, ["--config", file, "--out", "o", "--pace", "root"], "adapt")
    assert (told.pace, told.weights, told.ratio) == ("root", "similarity", 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: many\n", "--steps: Input should be a valid integer"),
        ("stepps: 3\n", "no setting is called stepps"),
        ("- steps\n", "want names of flags and their values, found list"),
        ("", "want names of flags and their values, found NoneType"),
        ("steps: [1\n", "cannot be read as YAML"),
        ("!!python/object/apply:os.getcwd []\n", "cannot be read as YAML"),
        ("steps: -1\n", "--steps: Input should be greater than or equal to 0, got -1"),
    ],
)
def test_a_file_of_settings_that_does_not_fit_gets_one_line(text: str, message: str, tmp_path: Path, capsys):
    told = ["--checkpoint", "c", "--source", "a", "--target", "b", "--out", "o"]
    with pytest.raises(SystemExit) as stop:
        from_command_line(config.AdaptConfig, ["--config", settings_file(tmp_path, text), *told], "urbancross adapt")
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("urbancross adapt: ")
    assert message in line


def test_a_file_of_settings_has_to_be_there_and_to_be_one(tmp_path: Path, capsys):
    file = settings_file(tmp_path, "steps: 3\n")
    for flags, message in (
        (["--config", str(tmp_path / "none.yaml")], "no such file"),
        (["--config"], "--config: expected one argument"),
        (["--config", file, f"--config={file}"], "--config: given 2 times"),
        (["--config", settings_file(tmp_path, "{", "x.json")], "cannot be read as JSON"),
    ):
        with pytest.raises(SystemExit) as stop:
            from_command_line(config.AdaptConfig, flags, "adapt")
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_help_tells_of_the_file_of_settings(capsys):
    with pytest.raises(SystemExit):
        cli.main(None, ["adapt", "--help"])
    assert "--config FILE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--budget", "soon"], "--budget: want trials, hours or GPU-hours, such as 20, 2h or 8gpu-h, got 'soon'"),
        (["--budget", "2.5"], "--budget: trials are whole"),
        (["--budget", "3gpu-h"], "--budget 3gpu-h never ends without GPUs"),
        (["--scheduler", "asha", "--steps", "60"], "--steps 60 with --evaluate-steps 50 has none before the end"),
    ],
)
def test_a_sweep_that_cannot_work_is_refused_in_one_line(flags, message, capsys):
    told = ["--checkpoint", "c", "--source", "a", "--target", "b", "--out", "o"]
    with pytest.raises(SystemExit) as stop:
        from_command_line(config.TuneConfig, [*told, *flags], "tune")
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_budget_is_trials_hours_or_gpu_hours():
    def limits(*flags: str) -> config.Budget:
        told = ["--checkpoint", "c", "--source", "a", "--target", "b", "--out", "o", "--gpus-per-worker", "1"]
        return from_command_line(config.TuneConfig, [*told, *flags], "tune").limits

    assert limits() == config.Budget(trials=20)
    assert limits("--search", "grid") == config.Budget()
    assert limits("--budget", "7 trials") == limits("--budget", "7") == config.Budget(trials=7)
    assert limits("--budget", "1.5h") == config.Budget(hours=1.5)
    assert limits("--budget", "4 GPU-hours") == config.Budget(gpu_hours=4.0)

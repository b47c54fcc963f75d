"""Flags to settings: one line on what is wrong, and nothing from the environment unseen."""

import pytest

from urbancross import cli, config


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
    read = config.from_command_line(config.EmbedConfig, ["--archive", "a", "--checkpoint", "c"], "urbancross embed")
    assert read.workers != 9
    assert config.CaptionConfig(archive="a").seed == 0


def test_a_flag_reaches_its_field():
    read = config.from_command_line(
        config.SearchConfig, ["--archive", "a", "two words", "--json", "--bbox", "1,2,3,4"], "urbancross search"
    )
    assert (read.text, read.json_, read.bbox, read.top) == ("two words", True, "1,2,3,4", 10)

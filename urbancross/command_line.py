"""Flags, and a file of settings under them, into a settings model; one line for each that does not fit."""

import json
import re
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from urbancross import storage
from urbancross.config import Config
from urbancross.errors import ConfigError, UrbanCrossError

C = TypeVar("C", bound=Config)

CONFIG = "--config"
HELP_OF_CONFIG = f"""
settings from a file:
  {CONFIG} FILE         JSON or YAML: flags without their dashes, and their values; flags go first
"""


def from_command_line(kind: type[C], arguments: Sequence[str], program: str) -> C:
    """Read flags into `kind`; `--help` shows every field, its meaning and its default.

    `--config FILE` gives settings that no flag does. A flag or a file that does not fit ends the program with exit code
    2 and one line per flag on stderr.
    """
    kind.model_config["cli_prog_name"] = program
    try:
        others, file = _config_file(_with_negative_values(arguments))
        others, texts = _whole_texts(others, kind)
        return CliApp.run(kind, cli_args=others, **{**(settings_in(file, kind) if file else {}), **texts})
    except SystemExit as ended:
        if not ended.code:  # --help
            print(HELP_OF_CONFIG, end="")
        raise
    except UrbanCrossError as error:
        lines = [str(error)]
    except ValidationError as error:
        lines = [
            problem["msg"].removeprefix("Value error, ")
            if not problem["loc"]  # of several flags together
            else f"{_flag(problem['loc'])}: {problem['msg'].removeprefix('Value error, ')}"
            + ("" if problem["type"] == "missing" else f", got {problem['input']!r}")
            for problem in error.errors()
        ]
    except SettingsError as error:
        told = str(error).removeprefix("error parsing CLI: ").replace("\n", " ")
        lines = [
            re.sub(r"^Parsing error encountered for (\w+)", lambda found: f"{_flag((found[1],))} is no JSON", told)
        ]
    print("\n".join(f"{program}: {line}; see {program} --help" for line in lines), file=sys.stderr)
    sys.exit(2)


def settings_in(file: str, kind: type[Config]) -> dict[str, Any]:
    """The settings that a JSON or YAML file holds, by the names that `kind` takes them by.

    Raises:
        ConfigError: the file is absent, is neither, or holds what `kind` has no setting for.
    """
    path = storage.file(file, CONFIG)
    try:
        text = path.read_text()
        told = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, OSError) as error:
        first = " ".join(str(error).split())[:150]
        raise ConfigError(f"{CONFIG} {file} cannot be read as {_kind_of(path.suffix)} ({first})") from None
    if not isinstance(told, dict):
        raise ConfigError(f"{CONFIG} {file}: want names of flags and their values, found {type(told).__name__}")
    names = {_flag((name,)): field.alias or name for name, field in kind.model_fields.items()}
    unknown = [str(name) for name in told if _flag((str(name),)) not in names]
    if unknown:
        raise ConfigError(f"{CONFIG} {file}: no setting is called {', '.join(unknown)}")
    return {names[_flag((str(name),))]: value for name, value in told.items()}


def _kind_of(suffix: str) -> str:
    return "JSON" if suffix == ".json" else "YAML"


def _config_file(arguments: list[str]) -> tuple[list[str], str | None]:
    """The arguments without `--config FILE`, and the file.

    Raises:
        ConfigError: no file follows, or several are given.
    """
    others: list[str] = []
    files: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument == CONFIG:
            value = next(left, None)
            if value is None:
                raise ConfigError(f"{CONFIG}: expected one argument")
            files.append(value)
        elif argument.startswith(f"{CONFIG}="):
            files.append(argument.partition("=")[2])
        else:
            others.append(argument)
    if len(files) > 1:
        raise ConfigError(f"{CONFIG}: given {len(files)} times; put the settings into one file")
    return others, files[0] if files else None


def _with_negative_values(arguments: Sequence[str]) -> list[str]:
    """`--bbox -3.2,55.9,...` as `--bbox=-3.2,55.9,...`: argparse takes the value for a flag otherwise."""
    joined: list[str] = []
    for argument in arguments:
        flag = joined[-1] if joined else ""
        if re.match(r"-[\d.]", argument) and flag.startswith("--") and "=" not in flag:
            joined[-1] = f"{flag}={argument}"
        else:
            joined.append(argument)
    return joined


def _whole_texts(arguments: list[str], kind: type[Config]) -> tuple[list[str], dict[str, Any]]:
    """Take out the flags that may be said again and again, each with one text: pydantic-settings cuts texts at commas.

    Returns:
        The other arguments, and the texts by field.
    """
    names = {_flag((name,)): name for name, field in kind.model_fields.items() if field.annotation == list[str] | None}
    others: list[str] = []
    texts: dict[str, Any] = {}
    left = iter(arguments)
    for argument in left:
        flag, sign, value = argument.partition("=")
        text = value if sign else next(left, None) if flag in names else None
        if flag in names and text is not None:
            texts.setdefault(names[flag], []).append(text)
        else:
            others.append(argument)
    return others, texts


def _flag(location: tuple[int | str, ...]) -> str:
    return "--" + str(location[0]).rstrip("_").replace("_", "-") if location else "arguments"

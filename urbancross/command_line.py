"""Flags into a settings model, and one line for each that does not fit."""

import re
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from urbancross.config import Config

C = TypeVar("C", bound=Config)


def from_command_line(kind: type[C], arguments: Sequence[str], program: str) -> C:
    """Read flags into `kind`; `--help` shows every field, its meaning and its default.

    A flag that does not fit ends the program with exit code 2 and one line per flag on stderr.
    """
    kind.model_config["cli_prog_name"] = program
    try:
        others, texts = _whole_texts(_with_negative_values(arguments), kind)
        return CliApp.run(kind, cli_args=others, **texts)
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

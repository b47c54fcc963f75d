"""What verbs have in common."""

import os
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

Split = Literal["train", "valid", "test"]


def _names_a_folder(told: str) -> str:
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]*", told):
        raise ValueError("want letters, digits, dots, dashes and underscores, a letter or digit first")
    return told


Variant = Annotated[str, AfterValidator(_names_a_folder)]


class Config(BaseSettings):
    model_config = SettingsConfigDict(
        use_attribute_docstrings=True,
        extra="forbid",
        frozen=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_exit_on_error=False,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)  # flags only: no setting comes from an environment variable unseen


class ArchiveConfig(Config):
    archive: str
    """The archive: a folder or an s3://bucket/prefix that holds tables."""


class WorkersConfig(Config):
    """What every verb has that works on actors."""

    workers: PositiveInt = Field(default=os.cpu_count() or 1)
    """Actors that work at the same time."""
    cpus_per_worker: PositiveFloat = 1
    """CPUs that one actor asks of Ray."""
    gpus_per_worker: NonNegativeFloat = 0
    """GPUs, or a share of one, that one actor asks of Ray."""
    memory_gib_per_worker: NonNegativeFloat = 0
    """Memory in GiB that one actor asks of Ray, which places it by that and does not enforce it."""
    accelerator: str | None = None
    """Kind of accelerator that an actor's node has to have, by Ray's name, such as A10G or H100."""
    stall_minutes: float = Field(default=30, gt=0, le=100_000)
    """End a worker that makes no step for so long; its tiles are tried again, and left out if it is them."""


class MakerConfig(WorkersConfig):
    """What every verb has that makes a table on the way."""

    max_failed: str | None = None
    """Stop when more tiles fail, such as 5% or 100; default: go on."""

    @field_validator("max_failed")
    @classmethod
    def _is_budget(cls, told: str | None) -> str | None:
        if told is not None and not re.fullmatch(r"\d+(\.\d+)?%|\d+", told):
            raise ValueError("want a share such as 5% or a count such as 100")
        return told


class StageConfig(ArchiveConfig, MakerConfig):
    """What every verb has that makes a table."""

"""The table of verbs, and the one way into each: flags, run, balance line, exit code."""

import contextlib
import importlib
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from urbancross import config as settings
from urbancross import runs, storage
from urbancross.command_line import from_command_line
from urbancross.errors import CheckpointError, ConfigError, LeaseError, SchemaError, UrbanCrossError
from urbancross.progress import heard_by

DONE, STOPPED, BAD_INPUT = 0, 1, 2
BAD_INPUTS = (ConfigError, SchemaError, CheckpointError)  # which leave no run behind, unless it went on for a minute
HOMES = ("home", "archive", "target")  # settings that name where a run is recorded, the first that a verb has


@dataclass(frozen=True)
class Verb:
    kind: type[settings.Config]
    run: str  # "module:function", imported when called
    recorded: bool = True  # in a run folder; one that only reads writes none, however long it goes on
    ways: dict[str, "Verb"] = field(default_factory=dict)  # what else it does, by the flag that says so

    @property
    def summary(self) -> str:
        return (self.kind.__doc__ or "").strip().splitlines()[0]


VERBS = {
    "ingest": Verb(settings.IngestConfig, "urbancross.distributed.ingest:run"),
    "geotag": Verb(settings.GeotagConfig, "urbancross.distributed.geotagging:run"),
    "caption": Verb(settings.CaptionConfig, "urbancross.distributed.captioning:run"),
    "segment": Verb(settings.SegmentConfig, "urbancross.distributed.segmentation:run"),
    "rank": Verb(settings.RankConfig, "urbancross.distributed.ranking:run"),
    "pretrain": Verb(settings.PretrainConfig, "urbancross.distributed.pretraining:run"),
    "adapt": Verb(settings.AdaptConfig, "urbancross.distributed.adaptation:run"),
    "tune": Verb(settings.TuneConfig, "urbancross.distributed.tuning:run"),
    "embed": Verb(settings.EmbedConfig, "urbancross.distributed.embedding:run"),
    "retry": Verb(settings.RetryConfig, "urbancross.distributed.retrying:run"),
    "verify": Verb(settings.VerifyConfig, "urbancross.distributed.verifying:run"),
    "explain": Verb(settings.ExplainConfig, "urbancross.explain:run"),
    "index": Verb(settings.IndexConfig, "urbancross.index.building:run"),
    "search": Verb(settings.SearchConfig, "urbancross.search:run"),
    "serve": Verb(settings.ServeConfig, "urbancross.serve.running:run", recorded=False),
    "evaluate": Verb(settings.EvaluateConfig, "urbancross.distributed.evaluation:run"),
    "audit-splits": Verb(settings.AuditConfig, "urbancross.distributed.auditing:run"),
    "duplicates": Verb(settings.DuplicatesConfig, "urbancross.distributed.duplicates:run"),
    "export": Verb(settings.ExportConfig, "urbancross.export:run"),
    "gallery": Verb(settings.GalleryConfig, "urbancross.report.gallery:run"),
    "report": Verb(
        settings.ReportConfig,
        "urbancross.report.gather:run",
        ways={"--map": Verb(settings.MapConfig, "urbancross.report.map:run", recorded=False)},
    ),
    "plan": Verb(settings.PlanConfig, "urbancross.distributed.planning:run"),
    "doctor": Verb(settings.DoctorConfig, "urbancross.distributed.doctor:run"),
    "demo": Verb(settings.DemoConfig, "urbancross.demo:run"),
}


def main(verb: str | None = None, arguments: Sequence[str] | None = None) -> None:
    """Run one verb and exit with 0 (done), 1 (stopped; rerun to resume) or 2 (bad arguments or input)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    program = "urbancross" if verb is None else f"jobs/{verb}.py"
    if verb is None:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(usage())
            sys.exit(DONE if arguments else BAD_INPUT)
        verb = arguments.pop(0)
        program = f"urbancross {verb}"
        if verb not in VERBS:
            print(f"urbancross {verb}: no such verb; one of {', '.join(VERBS)}", file=sys.stderr)
            sys.exit(BAD_INPUT)
    way = next((flag for flag in VERBS[verb].ways if flag in arguments), None)
    if way is not None:
        arguments = [argument for argument in arguments if argument != way]
        program = f"{program} {way}"
    config = from_command_line((VERBS[verb].ways[way] if way else VERBS[verb]).kind, arguments, program)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `ray job stop` ends a verb as Ctrl-C does
    try:
        call(verb, config)
    except BAD_INPUTS as error:
        fail(program, error, BAD_INPUT)
    except UrbanCrossError as error:
        fail(program, error, STOPPED)
    except KeyboardInterrupt:
        fail(program, "stopped; run the same command again to go on", STOPPED)


def call(verb: str, config: settings.Config) -> runs.Balance | None:
    """Run a verb; its balance goes to its last line, and with what it was asked and said into its run folder."""
    wanted = next((way for way in VERBS[verb].ways.values() if way.kind is type(config)), VERBS[verb])
    module, function = wanted.run.split(":")
    home = next((found for name in HOMES if (found := getattr(config, name, None))), None)
    if home is None or not wanted.recorded:
        balance: runs.Balance | None = getattr(importlib.import_module(module), function)(config)
    else:
        journal = runs.Journal(storage.place(home), verb, config.model_dump())
        try:
            with heard_by(journal.hear):
                balance = getattr(importlib.import_module(module), function)(config)
        except BaseException as error:
            begun = isinstance(config, settings.WorkersConfig) and not isinstance(error, (*BAD_INPUTS, LeaseError))
            if begun or journal.is_kept:
                stopped = "by Ctrl-C, or by SIGTERM as of ray job stop" if isinstance(error, KeyboardInterrupt) else ""
                close(journal, None, stopped or str(error) or type(error).__name__)
            raise
        if balance is not None:
            runs.record(journal.home, verb, journal.settings, balance, journal.run)
            close(journal, balance, "")
    if balance is not None and not getattr(config, "json_", False):  # whose output is one document
        print(balance, flush=True)
    return balance


def close(journal: runs.Journal, balance: runs.Balance | None, why: str) -> None:
    """Keep how a run ended, and its page."""
    from urbancross.report import run as page

    journal.hear({"ended": "done", **runs.counts_of(balance)} if balance else {"ended": "stopped", "why": why})
    journal.keep()
    with contextlib.suppress(UrbanCrossError, OSError):
        if storage.names(journal.run):
            storage.replace(journal.run / page.PAGE, page.page_of(journal, balance).encode())


def fail(program: str, error: object, code: int) -> None:
    print(f"{program}: {error}", file=sys.stderr)
    sys.exit(code)


def usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(["usage: urbancross VERB --help", "", *lines])


if __name__ == "__main__":
    main()

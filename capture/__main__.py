"""The command ``capture``: one table, command name -> function, loaded only when it is called."""

from __future__ import annotations

import os
import re
import signal
import sys
from importlib import import_module
from typing import Final, NamedTuple, NoReturn

import typer

from capture.errors import UserError


class Command(NamedTuple):
    """A row of the table: ``module:function`` and the line that ``capture --help`` shows."""

    target: str
    help: str


COMMANDS: Final = {
    "proxy": Command("proxy.command:proxy", "Run the sidecar: relay traffic and capture its signatures."),
    "config": Command("proxy.config_command:config", "Check, show and document settings."),
    "worker": Command("capture.commands.worker:worker", "Run a sidecar's capture worker in a container of its own."),
    "status": Command("capture.commands.status:status", "Say whether capture works, and why a store is empty."),
    "ls": Command("capture.commands.ls:ls", "List what was captured, most used first."),
    "show": Command("capture.commands.show:show", "Show one signature: who sends it, how it differs, what it fits."),
    "export": Command("capture.commands.export:export", "Write warm-up files from what was captured."),
    "ingest": Command("capture.commands.ingest:ingest", "Read requests that were recorded elsewhere into a store."),
    "store": Command("capture.commands.store:store", "Copy a store into another one, of whatever kinds."),
    "doctor": Command("capture.commands.doctor:doctor", "Say what of a model warm-up by names does not cover."),
    "inspect": Command("capture.commands.inspect:inspect", "List what is in a warm-up file, whoever wrote it."),
    "coverage": Command(
        "capture.commands.coverage:coverage_command",
        "Say what share of production a warm-up file covers, and bound the rest.",
    ),
    "diff": Command("capture.commands.diff:diff", "Compare two warm-up files, or one with a store."),
    "verify": Command("replay.commands.verify:verify", "Prove on real TensorFlow that a warm-up file helps."),
    "watch": Command(
        "replay.commands.watch:watch", "Watch in production whether the model server builds graphs, and for whom."
    ),
    "refresh": Command("replay.commands.refresh:refresh", "Write the warm-up file of each new model version, once."),
    "publish": Command("replay.commands.publish:publish", "Bring an EAS service's warm-up data to OSS, and name it."),
    "replay": Command("replay.commands.replay:replay", "Send records to a running server; as a gate: ready when warm."),
    "host": Command("replay.commands.host:host", "Serve a SavedModel locally by the servers' own rules."),
}

#: A URL up to its password, and the password.
_PASSWORD: Final = re.compile(r"(\b(?:rediss?(?:\+cluster)?|unix)://[^\s:/@]*:)\S*@")
_HIDDEN: Final = r"\1***@"
#: These serve until SIGTERM and handle it themselves.
SERVING: Final = frozenset({"proxy", "worker", "host"})
#: Packages that only ``warmtap[tensorflow]`` brings.
EXTRA: Final = frozenset({"tensorflow", "tensorflow_serving", "grpc", "aiohttp"})
#: Commands for which a smaller extra is enough.
SMALLER: Final = {"replay": "replay"}


def application(chosen: str | None) -> typer.Typer:
    """The command line with ``chosen`` loaded; the others are there by name and help line only."""
    app = typer.Typer(
        name="capture",
        help="warmtap: learn the signatures of production traffic, write warm-up files, prove them.",
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    @app.callback()
    def group() -> None:
        """warmtap: learn the signatures of production traffic, write warm-up files, prove them."""

    for name, command in COMMANDS.items():
        if name == chosen:
            module, function = command.target.split(":")
            found = getattr(import_module(module), function)
            if isinstance(found, typer.Typer):
                app.add_typer(found, name=name)
            else:
                app.command(name)(found)
        else:
            app.command(name, help=command.help)(_not_loaded)
    return app


def _not_loaded() -> None:
    raise AssertionError("only the chosen command is ever run")


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 1 the user can mend it (one line on stderr), 2 wrong usage, 130 and 143 ended by
    SIGINT and SIGTERM; verify has its own."""
    words = sys.argv[1:] if arguments is None else arguments
    chosen = next((word for word in words if not word.startswith("-")), None)
    if chosen not in SERVING:
        signal.signal(signal.SIGTERM, _terminated)
    try:
        application(chosen)(words, prog_name="capture")
    except UserError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        extra = SMALLER.get(chosen or "", "tensorflow")
        _fail(f"capture {chosen} needs {error.name}, which is not installed: pip install 'warmtap[{extra}]'")
    except BrokenPipeError:
        # The reader of our output went away (`capture ls | head`): nothing to say, and nobody to say it to.
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        _fail(f"{place}{error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _terminated(*_: object) -> None:
    """An exception, so that what is half written is cleared up on the way out."""
    sys.exit(128 + signal.SIGTERM)


def _fail(text: str) -> NoReturn:
    from capture.commands.tables import printable

    # A text may name what traffic named, and is one line; it may name a store by its URL.
    print(f"capture: error: {_PASSWORD.sub(_HIDDEN, printable(text))}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()

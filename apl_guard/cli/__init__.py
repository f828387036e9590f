"""The command line. Each command lives in a module of its own and imports what is heavy when it runs.

Exit codes: 0 done, 1 failed, 2 wrong input or usage, 3 blocked by the policy, 4 guard unavailable, 130
stopped by Ctrl-C. `audit verify` has its own: 0 valid, 1 tampered, 2 torn, 3 nothing to hold it against, 4 usage.
"""

from __future__ import annotations

import io
import logging
import os
import sys

import typer

from apl_guard._version import __version__
from apl_guard.cli import audit, metrics, minifaces, policy, prefix
from apl_guard.cli.attack import attack
from apl_guard.cli.bench import bench
from apl_guard.cli.demo import demo
from apl_guard.cli.evaluate import evaluate
from apl_guard.cli.generate import generate
from apl_guard.cli.options import put_error
from apl_guard.cli.paragraphs import flow
from apl_guard.cli.selftest import selftest
from apl_guard.cli.train import TrainCommand, train
from apl_guard.errors import AplGuardError, GuardUnavailable, InvalidInput, PolicyBlocked

__all__ = ["app", "main"]

_EXIT_CODES: dict[type[AplGuardError], int] = {PolicyBlocked: 3, GuardUnavailable: 4, InvalidInput: 2}

app = typer.Typer(
    help="Keep text-to-image models from drawing real people.",
    epilog="Start with: apl-guard generate --model minifaces --output out 'a photo of a man'",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
) -> None:
    pass


app.command(no_args_is_help=True)(generate)
app.command(no_args_is_help=True)(selftest)
app.add_typer(prefix.app, name="prefix")
app.add_typer(policy.app, name="policy")
app.add_typer(audit.app, name="audit")
app.add_typer(metrics.app, name="metrics")
app.command(cls=TrainCommand, no_args_is_help=True)(train)
app.command("eval", no_args_is_help=True)(evaluate)
app.command(no_args_is_help=True)(attack)
app.command()(bench)
app.command()(demo)
app.add_typer(minifaces.app, name="minifaces")
flow(app)


class _Nowhere(logging.Handler):
    """Takes records on purpose. A guard warns where nothing does, and counts a handler of Python's own as nothing."""

    def emit(self, record: logging.LogRecord) -> None:
        """Do nothing."""


def _quieten() -> None:
    """Let nothing speak that has nothing to say to who runs a command."""
    # onnxruntime, which diffusers imports wherever it is installed, would tell Microsoft how it is used.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if not sys.stderr.isatty():
        # In a file a bar is a line a minute, and what takes seconds has none.
        for name, seconds in (("DELAY", 10), ("MININTERVAL", 60), ("MAXINTERVAL", 60)):
            os.environ.setdefault(f"TQDM_{name}", str(seconds))
    # Where no folder is named, a command keeps no records, and its help says so.
    records = logging.getLogger("apl_guard.audit")
    records.addHandler(_Nowhere())
    records.setLevel(logging.INFO)
    records.propagate = False
    # diffusers asks for image processors that nothing here uses, and each would say that torchvision is missing.
    logging.getLogger("transformers.utils.import_utils").setLevel(logging.ERROR)


def main() -> None:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What is no text, such as a byte in the name of a file, is written out and stops nothing.
            stream.reconfigure(errors="backslashreplace")
    _quieten()
    try:
        app()
    except AplGuardError as error:
        put_error(f"error: {error}")
        sys.exit(next((code for kind, code in _EXIT_CODES.items() if isinstance(error, kind)), 1))
    except OSError as error:  # such as a file that this account may not read
        what = (
            f"{error.filename}: {error.strerror}"
            if error.filename is not None
            else error.strerror or type(error).__name__
        )
        put_error(f"error: {what}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)

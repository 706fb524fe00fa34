"""`neurtx`: finds the command, runs it, and says in one line what went wrong.

Nothing heavy may be imported here: `neurtx --help` answers at once.
"""

import os
import sys

from . import process

# Ctrl-C may come while the rest is imported
if __name__ == "__main__" or os.path.basename(sys.argv[0]) == "neurtx":
    process.catch_signals()

import contextlib
import errno
import importlib
import json
import re
import signal
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import click

from . import output

# One file in this folder per command, with a click command named `command` in it. The help lines
# stand here so that listing the commands loads none of them.
COMMANDS = {
    "models": "List the dense models that have a short name, and the runs that ship.",
    "convert": "Turn a dense language model into a spiking run.",
    "finetune": "Train a run to predict what the dense model it was made from predicts.",
    "eval": "Compare a run with its dense teacher on the same tokens.",
    "generate": "Continue a prompt with a run.",
    "energy": "Estimate the energy of a run beside the dense model's.",
    "export": "Write a run as a netlist for Loihi 2, or as NIR graphs.",
    "simulate": "Run a prompt through a netlist in Lava, and compare every spike and state.",
    "place": "Count the cores and chips of Loihi 2 that a netlist needs.",
    "run": "Convert, train, measure and export many models in one batch, described by a file.",
    "icl": "Measure what networks learn from their context, in floats, spikes, integers and Lava.",
    "report": "Gather what was measured of a run in one HTML page.",
    "install": "Fetch SpikingJelly and Lava, which pip alone does not install, or SmolLM2.",
    "doctor": "Say what is installed, what is missing, and what to type.",
}

# errors of the file system that are the caller's to mend
_CALLERS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EXDEV,
    errno.EBUSY,
    errno.ELOOP,
    errno.EMFILE,
    errno.ENFILE,
    errno.EIO,
    errno.ESTALE,
}
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# how safetensors, HDF5, torch.save and NumPy put it when the disk is full
_FULL = (
    "file too large",
    "os error 27",
    "errno = 27",
    "no space left",
    "os error 28",
    "errno = 28",
    "disk quota exceeded",
    ". unexpected pos",
    " requested and ",
)


class LazyGroup(click.Group):
    """A group that imports a command's file only when that command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f".{cmd_name}", __package__).command
        command.help = command.help or COMMANDS[cmd_name]
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="neurtransformer", prog_name="neurtx")
@click.pass_context
def neurtx(ctx: click.Context) -> None:
    """Turn a pretrained language model into a spiking network, and that into a netlist for Loihi 2.

    `neurtx COMMAND --help` says more about each command. A RUN is a folder with a spiking network,
    and a NETLIST is a folder with its integer form. One that is left out is the last one that was
    made from the current folder.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> NoReturn:
    """Run the command line and leave with 0 (done), 1 (failed) or 2 (the caller's mistake)."""
    _refuse_windows()
    process.catch_signals()
    process.open_streams()
    output.quiet()
    try:
        code = neurtx.main(prog_name="neurtx", standalone_mode=False)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        message, code = explain(error)
        if os.environ.get("NEURTX_TRACEBACK") or (code == 1 and _typed(r"--verbose|-v+")):
            traceback.print_exc()
        if message:
            click.echo(f"neurtx: {message}", err=True)
            if _typed(r"--json"):
                _tell_json(message.removeprefix("error: "), code)
        _drop_unwritten()
    sys.exit(code if isinstance(code, int) else 0)


def _typed(option: str) -> bool:
    """Whether a word was typed that fits this pattern: what was parsed may be nothing at all."""
    return any(re.fullmatch(option, word) for word in sys.argv[1:])


def _tell_json(message: str, code: int) -> None:
    """The answer of a command that failed; of several processes under torchrun one gives it."""
    if os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):
            print(json.dumps({"error": message, "exit_code": code}), flush=True)


def _refuse_windows() -> None:
    if sys.platform == "win32":
        from neurtransformer.errors import NOT_ON_WINDOWS

        click.echo(f"neurtx: error: {NOT_ON_WINDOWS}", err=True)
        sys.exit(2)


def explain(error: BaseException) -> tuple[str, int]:
    """What to tell the caller of `error`, in one line, and the exit code."""
    # whoever raised a UserError has imported it; importing it here would cost `--help` its speed
    errors = sys.modules.get("neurtransformer.errors")
    if errors is not None and isinstance(error, errors.UserError):
        return f"error: {_line(error)}", 2
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return process.farewell(signal.SIGINT), 130
    if isinstance(error, click.NoSuchOption) and (option := _misplaced(error)):
        return f"error: put {option} behind the command, as in `neurtx models {option}`", 2
    if isinstance(error, click.ClickException):
        hint = ""
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f" (see `{error.ctx.command_path} --help`)"
        return f"error: {_line(error.format_message()).rstrip('.')}{hint}", error.exit_code
    if isinstance(error, BrokenPipeError):
        return "", 1
    if _disk_is_full(error):
        return (
            f"error: no space left on the disk: free some or name another place; {process.KEPT}",
            2,
        )
    if isinstance(error, FileNotFoundError) and _gone():
        return "error: the current folder does not exist any more: cd into one that does", 2
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return "error: there is no home directory for `~` to name: set HOME", 2
    if isinstance(error, UnicodeEncodeError) and _surrogates(error.object):
        return f"error: {_line(error.object)}: a name must be UTF-8 text here: rename it", 2
    if isinstance(error, OSError) and error.errno in _CALLERS:
        return f"error: {error.filename or 'a file'}: {error.strerror}", 2
    if any(_raised_in("torchvision", each) for each in _chain(error)):
        return (
            "error: torchvision does not fit the torch that is installed, and transformers does "
            "not load beside it: type `pip uninstall -y torchvision`, which neurtx does not need",
            1,
        )
    # transformers says only what it wanted itself; what was missing stands in a cause
    missing = [each.name for each in _chain(error) if isinstance(each, ModuleNotFoundError)]
    if isinstance(error, ModuleNotFoundError) and any(missing):
        package = next(name for name in missing if name).partition(".")[0]
        if package in ("lava", "spikingjelly"):
            return f"error: {package} is not installed: type `neurtx install {package}`", 1
        return f"error: {package} is not installed: `neurtx doctor` says what to type", 1
    return (
        f"error: {type(error).__name__}: {_line(error)} (--verbose shows where)",
        1,
    )


def _misplaced(error: click.NoSuchOption) -> str | None:
    """The option of every command that was typed before the command; None if it was another."""
    of_all = ("--json", "--quiet", "-q", "--verbose", "-v")
    before = error.ctx is not None and error.ctx.command is neurtx
    return error.option_name if before and error.option_name in of_all else None


def _gone() -> bool:
    try:
        return not os.path.isdir(os.getcwd())
    except FileNotFoundError:
        return True


def _surrogates(text: object) -> bool:
    """Whether there is a byte in `text` that is no UTF-8, as Python shows those in names."""
    return isinstance(text, str) and any("\ud800" <= sign <= "\udfff" for sign in text)


def _disk_is_full(error: BaseException) -> bool:
    """Whether `error` or what caused it says so: safetensors and HDF5 wrap the system's error."""
    for seen in _chain(error):
        if isinstance(seen, OSError) and seen.errno in _NO_ROOM:
            return True
        if any(phrase in str(seen).lower() for phrase in _FULL):
            return True
    return False


def _raised_in(package: str, error: BaseException) -> bool:
    """Whether `error` went through a file of `package`."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(package in Path(frame.filename).parts for frame in frames)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """`error`, what caused it, and so on."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _line(error: object) -> str:
    return " ".join(str(error).split()) or "no message"


def _drop_unwritten() -> None:
    """Point standard output nowhere, so that a closed pipe or full disk is not met again when the
    interpreter flushes it on the way out."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()

"""The command line: ``bpl run``, ``sweep``, ``status``, ``data``, ``records``, ``export``, ``predict`` and ``bench``.

What goes wrong is one sentence on standard error, and an exit code of `bpl.machine.exit_codes`.
"""

import os
import select
import sys

from bpl.cli.commands import COMMANDS, Run, say
from bpl.cli.words import read
from bpl.machine import exit_codes
from bpl.machine.ending import Terminated, on_sigterm
from bpl.machine.out_of_memory import OutOfMemory, is_out_of_memory
from bpl.machine.processes import ProcessLost, alone_or_refused

_GO_ON = "start the same command again to go on from the last checkpoint, where one was saved"


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``bpl``.

    Args:
        arguments: the words of the command line; None for the process's own.
    """
    try:
        command = read(COMMANDS, arguments, prog="bpl", description=__doc__.splitlines()[0], epilog=exit_codes.MEANING)
        if not isinstance(command, Run):
            alone_or_refused("bpl run")
        with on_sigterm():
            code = command()
    except ValueError as error:
        code = say(error, getattr(error, "exit_code", exit_codes.WRONG_USAGE))
    except ProcessLost as error:
        code = say(f"{error}; {_GO_ON}", 1)
    except (OSError, ArithmeticError) as error:
        code = 1 if isinstance(error, BrokenPipeError) and _reader_has_left() else say(error, 1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        code = say(error if isinstance(error, OutOfMemory) else f"memory ran out: {error}", 1)
    except KeyboardInterrupt:
        code = say(f"interrupted{_go_on(arguments)}", exit_codes.INTERRUPTED)
    except Terminated:
        code = say(f"ended by SIGTERM{_go_on(arguments)}", exit_codes.TERMINATED)
    written = _written_out()
    sys.exit(code or written)


def _go_on(arguments: list[str] | None) -> str:
    """The end of a sentence: how to go on, with a command that keeps checkpoints."""
    words = sys.argv[1:] if arguments is None else arguments
    return f"; {_GO_ON}" if words[:1] in (["run"], ["sweep"]) else ""


def _reader_has_left() -> bool:
    """Whether standard output is a pipe that nobody reads any more, as in ``bpl status GRID | head``."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _written_out() -> int:
    """Write out what was printed; 1 where it cannot be, as where the disk behind standard output is full."""
    if sys.stdout is None:  # closed by the caller (bpl ... >&-): nothing was to be printed
        return 0
    try:
        sys.stdout.flush()
    except OSError as error:
        left = isinstance(error, BrokenPipeError) and _reader_has_left()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        if left:  # it has seen what it wanted, and wants no message
            return 1
        return say(f"standard output cannot be written: {error}")
    return 0

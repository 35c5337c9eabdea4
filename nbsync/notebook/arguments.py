"""What may stand after a magic. A mistake is a usage error that names the choices."""

from __future__ import annotations

import argparse
import re
import shlex
from functools import cache
from typing import Any, NoReturn

from nbsync.errors import UsageError


class Parser(argparse.ArgumentParser):
    """argparse that raises instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n{self.format_help()}")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise HelpShown

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuse unknown options here, so that a subcommand names its own."""
        known, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return known, rest

    def parse_line(self, line: str) -> argparse.Namespace:
        """Parse the text after a magic's name.

        Raises:
            UsageError: an unknown option, a missing or malformed value.
            HelpShown: `-h` was asked for and answered.
        """
        try:
            words = shlex.split(line)
        except ValueError as error:
            self.error(f"{error} in {line!r}")
        options = self.parse_args(_joined(words))
        if isinstance(getattr(options, "ranks", None), list):
            options.ranks = " ".join(options.ranks)
        return options


_NUMBERS = re.compile(r"\d[\d\s,-]*")


def _joined(words: list[str]) -> list[str]:
    """A list that is written with spaces, `0, 1` or `0 1`, is one word; names may follow."""
    joined: list[str] = []
    for word in words:
        if joined and (joined[-1].endswith(",") or (_NUMBERS.fullmatch(joined[-1]) and _NUMBERS.fullmatch(word))):
            joined[-1] += f" {word}"
        else:
            joined.append(word)
    return joined


class HelpShown(Exception):
    """`-h` was answered; there is nothing more to do."""


_SPEC = "0 | 0,2 | 0-3 | main | local_main | last | all"


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def _parser(prog: str, description: str, **kwargs: Any) -> Parser:
    return Parser(prog=prog, description=description, allow_abbrev=False, **kwargs)


def _add_run_options(parser: argparse.ArgumentParser, background: bool = True) -> None:
    parser.add_argument("--timeout", type=_seconds, metavar="S", help="interrupt the cell after S seconds")
    if background:
        parser.add_argument("--background", action="store_true", help="go on with the notebook while it runs")
    parser.add_argument("--push", default="", metavar="NAMES", help="first send these variables: a,b,c")


def start_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `Session` that the options of `%nbsync start` name.

    Raises:
        UsageError: a variable for the workers is none.
    """
    given = {
        "num_processes": options.n,
        "backend": options.backend,
        "seed": options.seed,
        "start_method": options.start_method,
        "threads_per_worker": options.threads,
        "numa": options.numa,
        "refill": options.refill or None,
        "compare_collectives": False if options.no_compare else None,
        "env": dict(_assignment(text) for text in options.env) or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"--env takes NAME=VALUE, got {text!r}")
    return name, value


def check_same(asked: dict[str, Any], running: dict[str, Any]) -> None:
    """Compare what a second start names, as arguments of `Session`, with what the workers were started with.

    Raises:
        UsageError: something is not the same; it names the options and the way out.
    """
    named = asked.get("env", {})
    running = running | {"env": {name: value for name, value in running["env"].items() if name in named}}
    differ = [name for name, value in asked.items() if value != running[name]]
    if differ:
        have, want = (", ".join(_as_option(name, values[name]) for name in differ) for values in (running, asked))
        raise UsageError(
            f"workers run already, with {have} instead of {want}: `%nbsync stop` ends them, "
            "then `%nbsync start ...` starts others"
        )


_OPTIONS = {"num_processes": "-n", "threads_per_worker": "--threads", "compare_collectives": "--no-compare"}
_FLAGS = {"refill": True, "compare_collectives": False}  # what the option makes of the argument


def _as_option(name: str, value: Any) -> str:
    """`--seed 3`, or `no --seed`."""
    option = _OPTIONS.get(name, f"--{name.replace('_', '-')}")
    if name == "env":
        return " ".join(f"--env {key}={text}" for key, text in value.items()) or "no such --env"
    if name in _FLAGS:
        return option if value is _FLAGS[name] else f"no {option}"
    return f"no {option}" if value is None else f"{option} {value}"


@cache
def distributed() -> Parser:
    parser = _parser("%%distributed", "Run the cell on all ranks, or on those named.")
    parser.add_argument("-n", type=int, metavar="N", help="number of ranks, when this cell starts the workers")
    parser.add_argument("--ranks", nargs="+", default="all", metavar="SPEC", help=_SPEC)
    _add_run_options(parser)
    return parser


@cache
def on_rank() -> Parser:
    parser = _parser("%%on_rank", "Run the cell on the ranks named only; the others skip it.")
    parser.add_argument("ranks", nargs="+", metavar="SPEC", help=_SPEC)
    _add_run_options(parser)
    return parser


@cache
def main_process_first() -> Parser:
    parser = _parser("%%main_process_first", "Rank 0 runs the cell, then the others do.")
    parser.add_argument("--local", action="store_true", help="the first of each node runs first")
    _add_run_options(parser, background=False)
    return parser


@cache
def wait_for_everyone() -> Parser:
    parser = _parser("%wait_for_everyone", "A barrier over all ranks.")
    parser.add_argument("name", nargs="*", metavar="NAME", help="what the barrier is called while ranks wait in it")
    return parser


@cache
def nbsync() -> Parser:
    parser = _parser("%nbsync", "The session from the line; alone it prints the status.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    start = commands.add_parser("start", help="start the workers", allow_abbrev=False)
    start.add_argument("-n", type=int, metavar="N", help="number of ranks; default: one per GPU, or 2")
    start.add_argument("--backend", metavar="NAME", help="gloo | nccl | cpu:gloo,cuda:nccl")
    start.add_argument("--seed", type=int, metavar="SEED", help="make the ranks' random states reproducible")
    start.add_argument("--start-method", metavar="METHOD", help="auto | fork | forkserver | spawn; default: auto")
    start.add_argument("--threads", type=int, metavar="N", help="for each worker; default: the cores divided by ranks")
    start.add_argument("--numa", metavar="HOW", help="node | socket | exclusive | core-complex: near each rank's GPU")
    start.add_argument("--refill", action="store_true", help="bring a rank back when its process has ended")
    start.add_argument("--no-compare", action="store_true", help="do not compare collectives between ranks")
    start.add_argument("--env", action="append", default=[], metavar="K=V", help="a variable for the workers")
    commands.add_parser("status", help="what every rank is doing")
    stack = commands.add_parser("stack", help="where every rank is, also while it is busy")
    stack.add_argument("ranks", nargs="*", default="all", metavar="SPEC", help="which ranks; default: all")
    wait = commands.add_parser("wait", help="until nothing runs in the background", allow_abbrev=False)
    wait.add_argument("--timeout", type=_seconds, metavar="S", help="S seconds at most; what runs goes on")
    commands.add_parser("interrupt", help="interrupt what runs")
    restart = commands.add_parser("restart", help="fresh workers, copies of the notebook as it is now")
    restart.add_argument("--ranks", nargs="+", metavar="SPEC", help="only these; the others keep their state")
    commands.add_parser("stop", help="end the workers")
    view = commands.add_parser("view", help="how the next cells show bars and barriers")
    view.add_argument("mode", nargs="?", choices=("on", "off", "compact"), help="default: say which it is")
    for name, text in (
        ("push", "send variables of the notebook"),
        ("pull", "fetch variables into the notebook"),
    ):
        command = commands.add_parser(name, help=text, allow_abbrev=False)
        command.add_argument("names", nargs="+", metavar="NAME", help="a variable")
        command.add_argument("--ranks", default="all", metavar="SPEC", help="which ranks; default: all")
    return parser

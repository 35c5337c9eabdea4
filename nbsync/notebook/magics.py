"""The magics. Each parses its line and calls the session: nothing of nbsync happens only here."""

from __future__ import annotations

import argparse
import keyword
import os
from collections.abc import Callable, Iterable
from typing import Any

from IPython.core.error import UsageError as IPythonUsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class

from nbsync.errors import (
    Interrupted,
    NoSession,
    RankBusy,
    StartError,
    TransferError,
    UsageError,
    WorkerError,
)
from nbsync.kernel.ranks import parse_ranks
from nbsync.kernel.start import culprit
from nbsync.notebook import arguments, background, completion, outlet
from nbsync.notebook.view import mode
from nbsync.protocol.words import describe_ranks

_PLAIN = (UsageError, NoSession, RankBusy, StartError, TransferError)


@magics_class
class NbsyncMagics(Magics):  # type: ignore[misc]  # traitlets
    """`%%distributed`, `%%on_rank`, `%%main_process_first`, `%wait_for_everyone`, `%nbsync`"""

    @cell_magic
    def distributed(self, line: str, cell: str) -> None:
        """Run the cell on every rank. `%%distributed -h` names the options."""
        self._plainly(self._distributed, arguments.distributed(), line, cell)

    @cell_magic
    def on_rank(self, line: str, cell: str) -> None:
        """Run the cell on the ranks named only: `%%on_rank 0,2-3`."""
        self._plainly(self._on_rank, arguments.on_rank(), line, cell)

    @cell_magic
    def main_process_first(self, line: str, cell: str) -> None:
        """Rank 0 runs the cell, then the others do."""
        self._plainly(self._main_process_first, arguments.main_process_first(), line, cell)

    @line_magic
    def wait_for_everyone(self, line: str) -> None:
        """A barrier over all ranks, from the notebook or as a line of a distributed cell."""
        from nbsync.kernel.current import in_worker

        if in_worker():
            from nbsync import World

            World().wait_for_everyone(line.strip() or None)  # the user may have made anything of `world`
        else:
            self._plainly(self._wait_for_everyone, arguments.wait_for_everyone(), line)

    @line_magic
    def nbsync(self, line: str) -> None:
        """The session from the line: start, status, wait, interrupt, stack, restart, stop, view, push, pull."""
        self._plainly(self._nbsync, arguments.nbsync(), line)

    # ---- cells ----

    def _distributed(self, options: argparse.Namespace, line: str, cell: str) -> None:
        session = self._session(options.n)
        self._push(options.push, options.ranks)
        self._run(session, self._code("distributed", line, cell), options.ranks, options)

    def _on_rank(self, options: argparse.Namespace, line: str, cell: str) -> None:
        session = self._session()
        self._push(options.push, options.ranks)
        self._run(session, self._code("on_rank", line, cell), options.ranks, options)

    def _main_process_first(self, options: argparse.Namespace, line: str, cell: str) -> None:
        session = self._session()
        self._push(options.push, "all")
        code = self._code("main_process_first", line, cell)
        first = "local_main" if options.local else "main"
        session.run_cell(code, first, timeout=options.timeout, execution_count=self._count)
        rest = [rank for rank in range(session.world_size) if rank not in parse_ranks(first, session.world_size)]
        if rest:
            session.run_cell(code, rest, timeout=options.timeout, execution_count=self._count)

    def _wait_for_everyone(self, options: argparse.Namespace) -> None:
        code = f"__import__('nbsync').World().wait_for_everyone({' '.join(options.name) or None!r})"
        self._existing().run_cell(code, execution_count=self._count)

    # ---- the line ----

    def _nbsync(self, options: argparse.Namespace) -> None:
        commands = {
            None: self._status,
            "start": self._start,
            "status": self._status,
            "wait": self._wait,
            "interrupt": self._interrupt,
            "stack": self._stack,
            "restart": self._restart,
            "stop": self._stop,
            "view": self._view,
            "push": self._push_names,
            "pull": self._pull_names,
        }
        commands[options.command](options)

    def _start(self, options: argparse.Namespace) -> None:
        from nbsync.kernel.current import has_session, session, set_session
        from nbsync.kernel.session import Session

        asked = arguments.start_arguments(options)
        if has_session():
            arguments.check_same(asked, session().options)
            print(f"nbsync runs already: {session().status().describe()}\n`%nbsync restart` gives fresh workers")
            return
        set_session(Session(**asked))
        print(f"nbsync: {_workers(session().world_size)}, {session().backend}")

    def _status(self, options: argparse.Namespace) -> None:
        from nbsync.kernel.current import has_session, session

        if not has_session():
            print("no workers: `%nbsync start` starts them")
            return
        print("\n".join([session().describe(), *(f"  {line}" for line in background.describe())]))

    def _wait(self, options: argparse.Namespace) -> None:
        if not background.wait(options.timeout, self._existing().interrupt):
            print("nothing runs in the background")

    def _stack(self, options: argparse.Namespace) -> None:
        print(self._existing().stack(options.ranks))

    def _interrupt(self, options: argparse.Namespace) -> None:
        from nbsync.kernel.current import session

        ranks = session().interrupt()
        print(f"interrupted: {describe_ranks(ranks)}" if ranks else "nothing runs")

    def _restart(self, options: argparse.Namespace) -> None:
        from nbsync.kernel.current import session

        ranks = session().restart(options.ranks)
        if options.ranks is None:
            background.forget()
        fresh = _are_fresh(ranks) if options.ranks else _workers(len(ranks), "fresh ")
        print(f"nbsync: {fresh}, {session().backend}")

    def _stop(self, options: argparse.Namespace) -> None:
        from nbsync.kernel.current import has_session, session, set_session

        if has_session():
            session().close()
            set_session(None)
            background.forget()

    def _view(self, options: argparse.Namespace) -> None:
        if options.mode is not None:
            mode.set_mode(options.mode)
        else:
            print(f"the view is {mode.mode()}")

    def _push_names(self, options: argparse.Namespace) -> None:
        self._push(",".join(options.names), options.ranks)

    def _pull_names(self, options: argparse.Namespace) -> None:
        session = self._existing()
        names = [name for text in options.names for name in _names(text)]
        wrong = [name for name in names if not name.isidentifier() or keyword.iskeyword(name)]
        if wrong:
            raise UsageError(f"{wrong[0]!r} is not a variable's name: session().pull({wrong[0]!r}) fetches expressions")
        rows = session.pull(*names, ranks=options.ranks)
        columns = [rows] if len(names) == 1 else list(zip(*rows, strict=True))
        one_rank = len(rows) == 1
        for name, values in zip(names, columns, strict=True):
            self.shell.user_ns[name] = values[0] if one_rank else list(values)

    # ---- small parts ----

    def _plainly(self, command: Callable[..., None], parser: arguments.Parser, line: str, *rest: str) -> None:
        """Run a command; what the user can mend by another line is told without a traceback."""
        from nbsync.kernel.current import in_worker

        try:
            if in_worker():
                raise UsageError("this cell runs on a rank already; there `world` is what controls the processes")
            options = parser.parse_line(line)
            command(options, line, *rest) if rest else command(options)
        except arguments.HelpShown:
            return
        except KeyboardInterrupt as error:  # it shows no lines of ours, which say nothing to the user
            raise (error if isinstance(error, Interrupted) else Interrupted()) from None
        except _PLAIN as error:
            if isinstance(error, WorkerError):  # a rank's, of this type too: it shows the line of the cell
                raise
            also = ", `%nbsync wait` waits for it" if isinstance(error, RankBusy) and background.is_running() else ""
            raise IPythonUsageError(f"{error}{also}") from None

    def _session(self, size: int | None = None) -> Any:
        """The current session; started now if there is none."""
        from nbsync.kernel.current import has_session, session, set_session
        from nbsync.kernel.session import Session

        if not has_session():
            set_session(Session(size))
        elif size is not None and size != session().world_size:
            raise UsageError(
                f"{session().world_size} workers run already, not {size}: `%nbsync stop` ends them, "
                f"`%nbsync start -n {size}` starts others"
            )
        return session()

    def _existing(self) -> Any:
        from nbsync.kernel.current import session

        return session()

    def _push(self, text: str, ranks: str) -> None:
        names = _names(text)
        missing = [name for name in names if name not in self.shell.user_ns]
        if missing:
            raise UsageError(f"there is no variable {', '.join(missing)} in the notebook")
        if names:
            self._existing().push({name: self.shell.user_ns[name] for name in names}, ranks)

    def _code(self, magic: str, line: str, cell: str) -> str:
        """The cell with its first line as a comment, so that line numbers are those of the notebook.

        A cell magic must stay on the first line, so there the numbers are one off.
        """
        return cell if cell.lstrip().startswith("%%") else f"# %%{magic} {line}".rstrip() + f"\n{cell}"

    def _run(self, session: Any, code: str, ranks: str, options: argparse.Namespace) -> None:
        how = {"timeout": options.timeout, "execution_count": self._count}
        if not options.background:
            session.run_cell(code, ranks, **how)
            return
        session.check_idle(ranks)  # what is wrong from the beginning ends this cell
        background.run_in_background(
            self.shell,
            lambda sink: session.run_cell(code, ranks, sink=sink, **how),
            f"Cell In[{self._count}]",
            parse_ranks(ranks, session.world_size),
        )

    @property
    def _count(self) -> int:
        # The kernel has counted this cell already when it is stored in the history.
        return int(self.shell.execution_count) - 1 if self.shell.history_manager else 1


def _workers(count: int, kind: str = "") -> str:
    return f"{count} {kind}worker{'s' * (count != 1)}"


def _are_fresh(ranks: tuple[int, ...]) -> str:
    return f"{describe_ranks(ranks)} {'is' if len(ranks) == 1 else 'are'} fresh"


def _names(text: str) -> list[str]:
    return [name for part in text.split(",") for name in part.split()]


def _our_names() -> Iterable[tuple[str, str]]:
    return (
        ("cell", "distributed"),
        ("cell", "on_rank"),
        ("cell", "main_process_first"),
        ("line", "wait_for_everyone"),
        ("line", "nbsync"),
    )


def register(shell: InteractiveShell) -> None:
    """Add the magics to the shell, and show the workers' output in it."""
    shell.register_magics(NbsyncMagics)
    completion.register(shell)
    outlet.install()
    culprit.watch()
    if os.environ.get("NBSYNC_FORKSERVER") == "preload":
        from nbsync.kernel.engines.served import preload

        preload()


def unregister(shell: InteractiveShell) -> None:
    """Take the magics away again and end the workers."""
    from nbsync.kernel.current import open_sessions

    for session in open_sessions():
        session.close()
        background.forget()
        print(f"nbsync: {session.world_size} workers were ended with the extension; their variables are gone")
    for kind, name in _our_names():
        shell.magics_manager.magics[kind].pop(name, None)
    completion.unregister(shell)

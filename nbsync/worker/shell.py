"""Cells run in IPython, in the shell that the fork inherited, with its outlets turned towards the kernel."""

from __future__ import annotations

import asyncio
import builtins
import functools
import getpass
import linecache
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import CodeType, TracebackType
from typing import Any

from IPython.core import formatters, interactiveshell
from IPython.core.display_trap import DisplayTrap
from IPython.core.error import UsageError as MagicError
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from nbsync.errors import CollectiveMismatch, OperationCutOff, UsageError
from nbsync.protocol.messages import ClearOutput, Display, Source
from nbsync.worker.displays import Bundle, Hook, Publisher, plain, presentable
from nbsync.worker.failure import follows_from_others
from nbsync.worker.pace import Pace
from nbsync.worker.tracebacks import note_modules, without_own

_GROUP: Any = getattr(builtins, "BaseExceptionGroup", ())  # from Python 3.11
_END_CELLS = ("run_code", "run_ast_nodes", "run_cell_async", "_run_cell")  # where IPython tells of a cell's error


@dataclass
class CellOutcome:
    """What came of a cell: the last expression's mime bundle, or an exception with its rendered traceback."""

    result: Bundle | None = None
    error: BaseException | None = None
    traceback: Sequence[str] = ()


class WorkerShell:
    """The worker's IPython shell.

    Args:
        post: sends a message in its place among the output; it is given what makes the message from its number.
        pace: how fast may be displayed.
        on_error: told of an exception that ended a cell; returns whether its traceback is of no interest.
        on_statement: told of the code of each statement of a cell, before it runs.
    """

    def __init__(
        self,
        post: Callable[[Callable[[int], Any]], None],
        pace: Pace,
        on_error: Callable[[BaseException], bool],
        on_statement: Callable[[CodeType], None],
    ) -> None:
        self._post, self._pace, self._on_error = post, pace, on_error
        self.shell: Any = _inherited_shell()
        self._hook = Hook(self.shell, self._show)
        self._traceback: list[str] = []
        self._told: BaseException | None = None  # the error of this cell that `on_error` was told of
        self._ends_cell = True
        self._depth = 0  # of cells that run cells, as `%%capture` does
        shell = self.shell
        shell.display_pub = Publisher(self._show, self._clear)
        shell.displayhook = sys.displayhook = self._hook
        shell.display_trap = DisplayTrap(hook=self._hook)  # the inherited one is in use: the fork was made in a cell
        shell.run_cell = self._one_deeper(shell.run_cell)
        self._render_and_show = type(shell).showtraceback.__get__(shell)
        _tell_statements(shell, on_statement)
        shell.set_hook("show_in_pager", _print_page, 0)
        shell.set_next_input = lambda *args, **kwargs: None
        shell.ask_exit = _refuse_exit
        warnings.filterwarnings("ignore", "To exit: use")  # advice for a terminal, at a `SystemExit`
        shell.loop_runner = "asyncio"
        if shell.history_manager is not None:
            shell.history_manager.enabled = False
        _use_own_event_loop()
        _cut_line_to_front_end(shell)
        _refuse_questions(shell)

    @property
    def namespace(self) -> dict[str, Any]:
        namespace: dict[str, Any] = self.shell.user_ns
        return namespace

    def run_cell(self, code: str, execution_count: int) -> CellOutcome:
        """Run a cell as IPython does: magics, await, last expression, tracebacks with its source."""
        self.shell.execution_count = execution_count
        self._hook.begin(code)
        self._take_errors()
        outcome = self.shell.run_cell(code, store_history=False)
        error = outcome.error_before_exec or outcome.error_in_exec
        outcome.error_before_exec = outcome.error_in_exec = None  # a frame of the error's traceback holds `outcome`
        self.forget()
        if error is None:
            return CellOutcome(result=self._hook.take())
        if error is not self._told and not self._on_error(error) and not self._traceback:
            self._traceback = self.render(error, [interactiveshell.__file__])  # the cell has just put its own there
        self._told = None
        return CellOutcome(error=error, traceback=self._traceback)

    def _take_errors(self) -> None:
        """Whatever an earlier cell, or the notebook, has put in place of it, as `rich.traceback.install()` does."""
        shell, self._traceback, self._told = self.shell, [], None
        shell.showtraceback = self._show_traceback
        shell._showtraceback = self._keep_traceback
        shell.showsyntaxerror = type(shell).showsyntaxerror.__get__(shell)

    def look_up(self, expression: str) -> Any:
        """The value of a variable, or of any expression. Raises what the expression does."""
        try:
            return eval(expression, self.namespace)
        except Exception as error:  # whatever it is; the line of the expression itself tells nothing
            inner = error.__traceback__ and error.__traceback__.tb_next
            raise error.with_traceback(inner and inner.tb_next) from None

    def learn(self, sources: Sequence[Source]) -> None:
        """Take the code of notebook cells that ran since the start, for tracebacks."""
        for source in sources:
            lines = source.text.splitlines(keepends=True)
            linecache.cache[source.name] = (len(source.text), None, lines, source.name)
            if source.number is not None:
                self.shell.compile._filename_map[source.name] = source.number

    def render(self, error: BaseException, ours: Sequence[str] = ()) -> list[str]:
        """The traceback of `error` as IPython shows it, without its outermost frames where they are of these files."""
        trace = _below(error.__traceback__, ours)
        with without_own(error, trace):
            if isinstance(error, _GROUP):
                return self._render_group(error, trace)
            note_modules(trace)
            return list(self.shell.InteractiveTB.structured_traceback(type(error), error, trace, tb_offset=0))

    def _render_group(self, error: BaseException, trace: TracebackType | None) -> list[str]:
        """IPython shows nothing of the errors in a group."""
        below = _below(trace, [interactiveshell.__file__])
        text = "".join(traceback.format_exception(type(error), error, below))
        for name, number in self.shell.compile._filename_map.items():
            text = text.replace(f'File "{name}"', f"Cell In[{number}]")
        return text.splitlines()

    def forget(self) -> None:
        """Let go of the last error, whose frames would keep the user's objects alive."""
        self.shell.last_execution_result = None
        handler = self.shell.InteractiveTB
        handler.etype = handler.evalue = handler.tb = None
        for name in ("last_type", "last_value", "last_traceback", "last_exc"):
            vars(sys).pop(name, None)

    def _show_traceback(self, exc_tuple: Any = None, *args: Any, **kwargs: Any) -> None:
        """Tell of an error that ends the cell at once: others may wait for this rank, and rendering takes its time.

        What only follows from another rank's failure is folded into one line, and never rendered.
        """
        error = exc_tuple[1] if exc_tuple else sys.exc_info()[1]
        caller = sys._getframe(1).f_code
        if caller.co_filename == formatters.__file__ and error is not None and _ends_any_cell(error):
            raise error
        is_cells = caller.co_filename == interactiveshell.__file__ and caller.co_name in _END_CELLS
        self._ends_cell = is_cells and self._depth == 1
        if self._ends_cell:
            kwargs.pop("exception_only", None)  # IPython thinks the name of a `SystemExit` enough
        self._told = error if self._ends_cell else self._told
        if self._ends_cell and (error is None or self._on_error(error)):
            return
        if self._ends_cell and isinstance(error, MagicError):  # IPython would print it; it is shown as the cell's error
            return
        trace = error.__traceback__ if error is not None else None
        with without_own(error, trace):
            if self._ends_cell and isinstance(error, _GROUP):  # IPython would print it, and hand over nothing
                self._traceback = self._render_group(error, trace)
                return
            note_modules(trace)
            self._render_and_show(exc_tuple, *args, **kwargs)

    def _one_deeper(self, run_cell: Callable[..., Any]) -> Callable[..., Any]:
        """Errors of a cell in the cell are shown, as in Jupyter, and do not end it."""

        @functools.wraps(run_cell)
        def run(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            self._ends_cell = self._depth == 1
            try:
                return run_cell(*args, **kwargs)
            finally:
                self._depth -= 1
                self._ends_cell = True

        return run

    def _keep_traceback(self, etype: type, evalue: BaseException, stb: list[str]) -> None:
        if self._ends_cell:
            self._traceback = list(stb)
        else:  # a repr that raised, user code that shows an error it has caught, a cell in the cell
            print("\n".join(stb), file=sys.stderr if self._depth == 1 else sys.__stderr__)  # past `%%capture`

    def _show(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        display_id: str | None = None,
        update: bool = False,
    ) -> None:
        shown, about = presentable(data), plain(metadata or {})
        if shown:
            self._pace.keep(shown)
            self._post(lambda fence: Display(fence, shown, about, display_id, update))

    def _clear(self, wait: bool) -> None:
        self._pace.keep({})
        self._post(lambda fence: ClearOutput(fence, wait))


def _below(trace: TracebackType | None, files: Sequence[str]) -> TracebackType | None:
    """The traceback without its outermost frames where they are of these files."""
    while trace is not None and trace.tb_frame.f_code.co_filename in files:
        trace = trace.tb_next
    return trace


def make_shell(main: Any) -> InteractiveShell:
    """A shell on the module `main`, for a process that has none. It keeps no history."""
    config = Config()
    config.HistoryManager.enabled = False  # it would open the user's history file
    return InteractiveShell.instance(user_module=main, user_ns=vars(main), config=config)


def _inherited_shell() -> InteractiveShell:
    """The notebook's shell; in a plain script, a new one on its main module."""
    if InteractiveShell.initialized():
        return InteractiveShell.instance()
    return make_shell(sys.modules["__main__"])


def _tell_statements(shell: Any, tell: Callable[[CodeType], None]) -> None:
    """IPython compiles and runs the statements of a cell one by one."""
    original = shell.run_code

    async def run_code(code: CodeType, *args: Any, **kwargs: Any) -> Any:
        tell(code)
        return await original(code, *args, **kwargs)

    shell.run_code = run_code


def _cut_line_to_front_end(shell: Any) -> None:
    """A worker's widgets and comms must not write to the kernel's sockets, of which it has only copies."""
    kernel = getattr(shell, "kernel", None)
    if kernel is not None:
        kernel.session.send = lambda *args, **kwargs: None
    compiler = sys.modules.get("ipykernel.compiler")
    if compiler is not None:  # cells have the same file name on all ranks as in the notebook
        directory = os.path.join(tempfile.gettempdir(), f"ipykernel_{os.getppid()}")
        compiler.get_tmp_directory = lambda: directory  # type: ignore[attr-defined]


def _use_own_event_loop() -> None:
    """Top-level await needs a loop of this process: the inherited one belongs to the kernel's main thread."""
    asyncio.set_event_loop(asyncio.new_event_loop())


def _print_page(shell: Any, page: Any, start: int = 0, screen_lines: int = 0, pager_cmd: Any = None) -> None:
    """What `name?` tells would open a pager in the front end."""
    print(page["text/plain"] if isinstance(page, dict) else page)


def _refuse_questions(shell: Any) -> None:
    """Nobody could answer a rank that asks for input, or stops in a debugger."""
    for module, name in ((builtins, "input"), (getpass, "getpass")):
        setattr(module, name, _refuse_input)
    sys.breakpointhook = _refuse_breakpoint  # the kernel's own does nothing here
    shell.call_pdb = False  # the notebook's `%pdb on` was inherited
    type(shell).call_pdb = property(lambda _: False, _refuse_debugger)


def _refuse_input(*args: Any, **kwargs: Any) -> str:
    raise UsageError("a rank cannot ask for input: read it in an ordinary cell and send it with `%nbsync push NAME`")


def _ends_any_cell(error: BaseException) -> bool:
    """Whether it is no fault of the value that was to be shown, but of a collective that showing it waits for."""
    return isinstance(error, CollectiveMismatch | OperationCutOff) or follows_from_others(error, released=False)


def _refuse_breakpoint(*args: Any, **kwargs: Any) -> None:
    raise UsageError(
        "a rank cannot stop at a breakpoint: print what is of interest, or fetch it with `%nbsync pull NAME`"
    )


def _refuse_debugger(_: Any, is_on: bool) -> None:
    if is_on:
        _refuse_breakpoint()


def _refuse_exit() -> None:
    sys.exit("exit() on a rank does not end its process: `%nbsync stop` ends them all")

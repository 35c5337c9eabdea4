"""Cells run in IPython, in the shell that the fork inherited, with its outlets turned towards the kernel."""

from __future__ import annotations

import asyncio
import builtins
import getpass
import json
import linecache
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

from IPython.core import interactiveshell
from IPython.core.display_trap import DisplayTrap
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from nbsync.protocol.messages import ClearOutput, Display, Source
from nbsync.worker.tracebacks import note_modules

Bundle = tuple[dict[str, Any], dict[str, Any]]
_GROUP: Any = getattr(builtins, "BaseExceptionGroup", ())  # from Python 3.11
_MOST_TEXT = 1_000_000  # characters of one text that are shown
_END_CELLS = ("run_code", "run_ast_nodes", "run_cell_async", "_run_cell")  # where IPython tells of a cell's error
_WIDGET = "application/vnd.jupyter.widget-view+json"  # its model lives in the rank, out of the browser's reach


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
        on_error: told of an exception that ended a cell; returns whether its traceback is of no interest.
        on_statement: told of the code of each statement of a cell, before it runs.
    """

    def __init__(
        self,
        post: Callable[[Callable[[int], Any]], None],
        on_error: Callable[[BaseException], bool],
        on_statement: Callable[[CodeType], None],
    ) -> None:
        self._post, self._on_error = post, on_error
        self.shell: Any = _inherited_shell()
        self._hook = _Hook(self.shell, self._show)
        self._traceback: list[str] = []
        self._ends_cell = True
        shell = self.shell
        shell.display_pub = _Publisher(self._show, self._clear)
        shell.displayhook = sys.displayhook = self._hook
        shell.display_trap = DisplayTrap(hook=self._hook)  # the inherited one is in use: the fork was made in a cell
        self._render_and_show = shell.showtraceback
        shell.showtraceback = self._show_traceback
        shell._showtraceback = self._keep_traceback
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
        for module, name in ((builtins, "input"), (getpass, "getpass")):
            setattr(module, name, _refuse_input)

    @property
    def namespace(self) -> dict[str, Any]:
        namespace: dict[str, Any] = self.shell.user_ns
        return namespace

    def run_cell(self, code: str, execution_count: int) -> CellOutcome:
        """Run a cell as IPython does: magics, await, last expression, tracebacks with its source."""
        self.shell.execution_count = execution_count
        self._hook.begin(code)
        self._traceback, self._ends_cell = [], True
        outcome = self.shell.run_cell(code, store_history=False)
        error = outcome.error_before_exec or outcome.error_in_exec
        outcome.error_before_exec = outcome.error_in_exec = None  # a frame of the error's traceback holds `outcome`
        self.forget()
        if error is None:
            return CellOutcome(result=self._hook.take())
        return CellOutcome(error=error, traceback=self._traceback)

    def learn(self, sources: Sequence[Source]) -> None:
        """Take the code of notebook cells that ran since the start, for tracebacks."""
        for source in sources:
            lines = source.text.splitlines(keepends=True)
            linecache.cache[source.name] = (len(source.text), None, lines, source.name)
            if source.number is not None:
                self.shell.compile._filename_map[source.name] = source.number

    def render(self, error: BaseException, skip: int = 0) -> list[str]:
        """The traceback of `error` as IPython shows it, without its `skip` outermost frames."""
        trace = error.__traceback__
        for _ in range(skip):
            trace = trace.tb_next if trace is not None else None
        note_modules(trace)
        return list(self.shell.InteractiveTB.structured_traceback(type(error), error, trace, tb_offset=0))

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
        self._ends_cell = caller.co_filename == interactiveshell.__file__ and caller.co_name in _END_CELLS
        if self._ends_cell:
            kwargs.pop("exception_only", None)  # IPython thinks the name of a `SystemExit` enough
        if self._ends_cell and (error is None or self._on_error(error)):
            return
        if self._ends_cell and isinstance(error, _GROUP):  # IPython would print it, and hand over nothing
            self._traceback = traceback.format_exception(type(error), error, error.__traceback__)
            return
        if error is not None:
            note_modules(error.__traceback__)
        self._render_and_show(exc_tuple, *args, **kwargs)

    def _keep_traceback(self, etype: type, evalue: BaseException, stb: list[str]) -> None:
        if self._ends_cell:
            self._traceback = list(stb)
        else:  # a repr that raised, or user code that shows an error it has caught
            print("\n".join(stb), file=sys.stderr)

    def _show(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        display_id: str | None = None,
        update: bool = False,
    ) -> None:
        shown, about = _presentable(data), _plain(metadata or {})
        if shown:
            self._post(lambda fence: Display(fence, shown, about, display_id, update))

    def _clear(self, wait: bool) -> None:
        self._post(lambda fence: ClearOutput(fence, wait))


def _presentable(data: dict[str, Any]) -> dict[str, Any]:
    """A mime bundle in plain data, which any process can take."""
    plain = {
        str(kind): value if isinstance(value, str | bytes) else _plain(value)
        for kind, value in data.items()
        if kind != _WIDGET
    }
    text = plain.get("text/plain")
    if isinstance(text, str) and len(text) > _MOST_TEXT:
        plain["text/plain"] = f"{text[:_MOST_TEXT]}... ({len(text) - _MOST_TEXT:,} more characters)"
    return plain


def _plain(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, default=repr))
    except (TypeError, ValueError):  # keys that are no strings, a value that contains itself
        return repr(value)


class _Hook(DisplayHook):  # type: ignore[misc]  # traitlets
    """Keeps the last expression for the cell's end; earlier ones (ast_node_interactivity="all") show at once."""

    def __init__(self, shell: InteractiveShell, show: Callable[..., None]) -> None:
        super().__init__(shell=shell, cache_size=shell.cache_size)
        self._show_bundle = show
        self._code = ""
        self._kept: Bundle | None = None
        self.do_full_cache = 0  # no Out[n]: it would keep every cell's result alive on every rank

    def begin(self, code: str) -> None:
        self._code, self._kept = code, None

    def set_parent(self, parent: Any) -> None:
        """`ipywidgets.Output`, which rich draws in, sets the kernel's current cell: here there is one always."""

    def take(self) -> Bundle | None:
        kept, self._kept = self._kept, None
        return kept

    def quiet(self) -> bool:
        return bool(self.semicolon_at_end_of_expression(self._code))

    def write_output_prompt(self) -> None:
        pass

    def write_format_data(self, format_dict: dict[str, Any], md_dict: dict[str, Any] | None = None) -> None:
        if self._kept is not None:
            self._show_bundle(*self._kept)
        self._kept = (_presentable(format_dict), _plain(md_dict or {}))

    def log_output(self, format_dict: dict[str, Any]) -> None:
        pass

    def finish_displayhook(self) -> None:
        self._is_active = False


class _Publisher(DisplayPublisher):  # type: ignore[misc]  # traitlets
    def __init__(self, show: Callable[..., None], clear: Callable[[bool], None]) -> None:
        super().__init__()
        self._show_bundle, self._clear_output = show, clear

    def set_parent(self, parent: Any) -> None:
        """As that of `_Hook`."""

    def publish(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        source: str | None = None,
        *,
        transient: dict[str, Any] | None = None,
        update: bool = False,
        **kwargs: Any,
    ) -> None:
        self._show_bundle(data, metadata, (transient or {}).get("display_id"), update)

    def clear_output(self, wait: bool = False) -> None:
        self._clear_output(wait)


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


def _refuse_input(*args: Any, **kwargs: Any) -> str:
    raise RuntimeError("a rank cannot ask for input: read it in an ordinary cell and send it with `%nbsync push NAME`")


def _refuse_exit() -> None:
    sys.exit("exit() on a rank does not end its process: `%nbsync stop` ends them all")

"""What Tab offers: after a magic what its parser takes, in a cell of the ranks what is there."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher
from IPython.core.interactiveshell import InteractiveShell

from nbsync.errors import NbsyncError
from nbsync.kernel.current import has_session, session
from nbsync.kernel.ranks import NAMES, parse_ranks
from nbsync.notebook import arguments

_PARSERS = {
    "%%distributed": arguments.distributed,
    "%%on_rank": arguments.on_rank,
    "%%main_process_first": arguments.main_process_first,
    "%nbsync": arguments.nbsync,
}
_LINE = re.compile(r"\s*(%%?\w+)\s(?:(.*)\s)?(\S*)")  # the magic, whole words, and the one that Tab is pressed in
_PATH = re.compile(r"(?<![\w.\])}'\"])((?:[^\W\d]\w*\.)*)(\w*)$")  # a variable's path, and the last word


@context_matcher(identifier="nbsync.magic_arguments")  # type: ignore[untyped-decorator]  # IPython's
def match_arguments(context: CompletionContext) -> SimpleMatcherResult:
    """A matcher of IPython's. Where it has nothing to offer, the others do."""
    found = _LINE.fullmatch(context.text_until_cursor)
    if found is None or found[1] not in _PARSERS or (found[1].startswith("%%") and context.cursor_line > 0):
        return {"completions": [], "suppress": False}
    word = found[3]
    offered = [text for text in _offers(_PARSERS[found[1]](), (found[2] or "").split(), word) if text.startswith(word)]
    completions = [SimpleCompletion(text, type="magic") for text in offered]
    return {"completions": completions, "suppress": bool(completions), "matched_fragment": word, "ordered": True}


@context_matcher(identifier="nbsync.names_of_ranks")  # type: ignore[untyped-decorator]  # IPython's
def match_names(context: CompletionContext) -> SimpleMatcherResult:
    """A matcher of IPython's for the names of the first rank that the cell is for, also while it is busy."""
    first = context.full_text.partition("\n")[0]
    magic, found = _LINE.fullmatch(first + " "), _PATH.search(context.text_until_cursor)
    if context.cursor_line == 0 or found is None or magic is None or not magic[1].startswith("%%"):
        return {"completions": [], "suppress": False}
    path, word = found[1].removesuffix("."), found[2]
    names = _names(magic[1], first.partition(magic[1])[2], path) if path or word else ()
    chosen = sorted(name for name in names if name.startswith(word) and (word or not name.startswith("_")))
    completions = [SimpleCompletion(name, type="instance") for name in chosen]
    return {"completions": completions, "suppress": bool(path and chosen), "matched_fragment": word}


def _names(magic: str, line: str, path: str) -> Sequence[str]:
    """Of a rank's variables, or of an object there; none where they cannot be known."""
    if magic not in _PARSERS or not has_session():
        return ()
    try:
        options = _PARSERS[magic]().parse_line(line)
        rank = parse_ranks(getattr(options, "ranks", "main"), session().world_size)[0]
        where = session().peek(rank, names_of=path)[rank]
    except (NbsyncError, arguments.HelpShown):
        return ()
    return where.names if where is not None else ()


def _offers(parser: argparse.ArgumentParser, before: Sequence[str], word: str) -> Iterator[str]:
    """What may stand after the words `before`."""
    for number, each in enumerate(before):
        for action in parser._actions:
            if isinstance(action.choices, dict) and each in action.choices:
                yield from _offers(action.choices[each], before[number + 1 :], word)
                return
    options = parser._option_string_actions
    if before and before[-1] in options and options[before[-1]].nargs != 0:
        yield from _values(options[before[-1]])
        return
    places = [action for action in parser._actions if not action.option_strings]
    for action in places:
        yield from _values(action)
    if word.startswith("-") or not places:  # else they would hide the names of variables
        yield from (name for name in options if name not in ("-h", *before))


def _values(action: argparse.Action) -> Iterable[str]:
    return action.choices or (NAMES if action.metavar == "SPEC" else ())


def register(shell: InteractiveShell) -> None:
    """Offer them in this shell."""
    shell.Completer.custom_matchers += [match_arguments, match_names]


def unregister(shell: InteractiveShell) -> None:
    """Offer them no more."""
    for matcher in (match_arguments, match_names):
        shell.Completer.custom_matchers.remove(matcher)

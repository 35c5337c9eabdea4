"""What Tab offers after a magic: its commands, options and choices, as its parser has them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher
from IPython.core.interactiveshell import InteractiveShell

from nbsync.notebook import arguments

_PARSERS = {
    "%%distributed": arguments.distributed,
    "%%on_rank": arguments.on_rank,
    "%%main_process_first": arguments.main_process_first,
    "%nbsync": arguments.nbsync,
}
_LINE = re.compile(r"\s*(%%?\w+)\s(?:(.*)\s)?(\S*)")  # the magic, whole words, and the one that Tab is pressed in

_RANKS = ("main", "local_main", "last", "all")


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
    return action.choices or (_RANKS if action.metavar == "SPEC" else ())


def register(shell: InteractiveShell) -> None:
    """Offer them in this shell."""
    shell.Completer.custom_matchers.append(match_arguments)


def unregister(shell: InteractiveShell) -> None:
    """Offer them no more."""
    shell.Completer.custom_matchers.remove(match_arguments)

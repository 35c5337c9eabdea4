"""`make bench`: every figure of nbsync beside other tools, in one run on this machine.

Cells are driven through the Jupyter protocol, from the request to the reply and the idle message. The exit
status is 0 whether or not the targets are met: the table says it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from kernels import CellFailed
from report import Check, Row, heading, summary
from rows import ROWS


def main() -> None:
    """Measure the rows that were asked for, and print each as soon as it is there."""
    options = _options()
    begin = time.perf_counter()
    print(heading())
    rows = []
    for name in options.rows:
        row = _measure(name, options.repeats)
        print(f"\n{row}", flush=True)
        rows.append(row)
    print(f"\n{summary(rows)} ({time.perf_counter() - begin:.0f} s)")
    if options.json is not None:
        document = {"heading": heading(), "rows": [row.as_json() for row in rows]}
        options.json.write_text(json.dumps(document, indent=1) + "\n")


def _measure(name: str, repeats: int) -> Row:
    """The row; one that cannot be measured says why, and the others go on."""
    try:
        return ROWS[name](repeats)
    except CellFailed as error:
        return Row(name, "could not be measured", {}, [Check(str(error), met=False)])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure nbsync beside other tools.")
    parser.add_argument(
        "--rows",
        type=_names,
        default=list(ROWS),
        metavar="NAME,...",
        help=f"only these: {', '.join(ROWS)}",
    )
    parser.add_argument("--repeats", type=_positive, default=10, metavar="N", help="how often; default: 10")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every sample to FILE")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in ROWS:
            raise argparse.ArgumentTypeError(f"no row {name!r}: choose from {', '.join(ROWS)}")
    return names


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


if __name__ == "__main__":
    main()

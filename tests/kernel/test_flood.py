"""What is let through of a flood, and what is told of the rest. Bytes and times are given in."""

from __future__ import annotations

import os
import stat
from functools import partial
from pathlib import Path

import pytest

from nbsync.kernel.output import logs as logs_module
from nbsync.kernel.output.flood import BURST, RATE, RESUME, RING, Flood, Hidden
from nbsync.kernel.output.logs import Log, Logs
from nbsync.kernel.output.printer import Printer
from nbsync.kernel.output.sink import Sink, Stream, TextSink
from nbsync.kernel.ranks import parse_ranks

LINE = b"x" * 79 + b"\n"
FLOOD = LINE * 100_000  # 8 MB


class _Front(TextSink):
    """A front end that a flood would drown."""

    is_limited = True

    def __init__(self) -> None:
        self.shown: dict[Stream, str] = {"stdout": "", "stderr": ""}
        self.lines: list[str] = []

    def text(self, stream: Stream, text: str) -> None:
        self.shown[stream] += text

    def live(self, lines: object) -> None:
        self.lines = list(lines)  # type: ignore[call-overload]


def _printer(sink: Sink, folder: Path, ranks: int = 2) -> Printer:
    return Printer(range(ranks), sink, logs=Logs(folder))


def _feed(printer: Printer, rank: int, data: bytes, now: float, stream: Stream = "stdout") -> None:
    """As the pipes deliver it."""
    for start in range(0, len(data), 1 << 16):
        printer.text(rank, stream, data[start : start + (1 << 16)], now)
        printer.show(now)


# ---- one stream ----


def test_what_fits_is_shown() -> None:
    """Less than the burst goes through as it is, and so does more of it over a longer time."""
    flood = Flood()
    some = LINE * 10_000
    assert all(flood.take(some, now) == some for now in range(10, 100, 8))
    assert not flood.is_hiding


def test_a_flood_is_cut_at_a_lines_end() -> None:
    """What is shown of the chunk that is too much ends with a whole line; from then on all is hidden."""
    flood = Flood()
    shown = flood.take(FLOOD, 1.0)
    assert 0.8 * BURST < len(shown) < BURST
    assert shown.endswith(b"\n")
    assert flood.take(b"more\n", 1.0) == b""
    hidden = flood.end()
    assert (hidden.lines + len(shown) // 80 + hidden.end.count(b"\n")) == 100_001
    assert hidden.size + len(shown) + len(hidden.end) == len(FLOOD) + 5
    assert hidden.end == LINE * 19 + b"more\n"
    assert str(hidden) == f"{hidden.lines:,} lines hidden"


def test_a_flood_is_over_when_it_calms_down() -> None:
    """It goes on as long as more comes than may be shown, and is over soon after."""
    flood = Flood()
    flood.take(FLOOD, 1.0)
    for tenth in range(20, 60):
        flood.take(b"x" * int(RATE), tenth / 10)
        assert not flood.is_over(tenth / 10)
    assert not flood.is_over(6.0 + 0.9 * RESUME / RATE)
    assert flood.is_over(6.0 + 1.1 * RESUME / RATE)


def test_a_short_end_is_not_hidden() -> None:
    """When all that was held back fits into the end, nothing was hidden."""
    flood = Flood()
    flood.hide(b"one\ntwo\n")
    assert flood.end() == Hidden(0, 0, b"one\ntwo\n")


def test_without_newlines_bytes_are_counted() -> None:
    """Characters are not cut in two, and of one endless line the end is shown."""
    flood = Flood()
    shown = flood.take("ä".encode() * 2_000_000, 1.0)
    shown.decode()
    hidden = flood.end()
    assert "bytes hidden" in str(hidden)
    assert 0 < len(hidden.end) <= 8192
    assert len(shown) + hidden.size + len(hidden.end) == 4_000_000


def test_what_is_overwritten_is_no_flood() -> None:
    """A progress bar that writes over itself very fast shows as little as a slow one."""
    flood = Flood()
    assert all(flood.take(b"\rstep 12345 of 99999" * 3000, 1.0) for _ in range(1000))


# ---- a run ----


def test_head_and_end_are_shown(tmp_path: Path) -> None:
    """Of a flood the head and the last lines are shown, the rest is counted, and all of it is in the log."""
    front = _Front()
    printer = _printer(front, tmp_path)
    whole = b"".join(b"%d\n" % i for i in range(500_000))
    _feed(printer, 1, whole, 1.0)
    printer.text(0, "stdout", b"calm\n", 1.0)
    printer.text(1, "stderr", b"an error\n", 1.0)
    printer.show(2.0)
    assert "so far; the full log is" in front.lines[0]
    printer.close(2.1)
    printer.put_away()
    shown = front.shown["stdout"].splitlines()
    assert "[0] calm" in shown
    assert front.shown["stderr"] == "[1] an error\n"
    flood = [line.removeprefix("[1] ") for line in shown if line != "[0] calm"]
    (notice,) = [line for line in flood if "hidden" in line]
    at = flood.index(notice)
    assert flood[:at] == [str(i) for i in range(at)]
    assert flood[at + 1 :] == [str(i) for i in range(500_000 - 20, 500_000)]
    assert notice == f"{500_000 - at - 20:,} lines hidden; the full log is {tmp_path}/rank1.log"
    assert (tmp_path / "rank1.log").read_bytes().replace(b"an error\n", b"") == whole
    assert stat.S_IMODE((tmp_path / "rank1.log").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["rank1.log"]


def test_equal_floods_are_told_once(tmp_path: Path) -> None:
    """What all ranks say alike is counted and shown once, with the logs of all."""
    front = _Front()
    printer = _printer(front, tmp_path, ranks=4)
    for start in range(0, len(FLOOD), 1 << 16):
        for rank in range(4):
            printer.text(rank, "stdout", FLOOD[start : start + (1 << 16)], 1.0)
        printer.show(1.0)
    printer.close(1.2)
    printer.put_away()
    (notice,) = [line for line in front.shown["stdout"].splitlines() if "hidden" in line]
    assert notice.startswith("[0-3] ")
    assert notice.endswith(f"the full logs are {tmp_path}/rank0.log and 3 beside it")
    assert len(front.shown["stdout"]) < BURST + 100_000


def test_many_ranks_share_what_a_front_end_bears(tmp_path: Path) -> None:
    """Ranks none of which floods alone are still too much together; each rank's own order is kept."""
    front = _Front()
    printer = _printer(front, tmp_path, ranks=8)
    said = {rank: [f"{rank}-{i}-{'x' * 70}" for i in range(9000)] for rank in range(8)}
    for start in range(0, 9000, 500):
        for rank, lines in said.items():
            printer.text(rank, "stdout", "".join(f"{x}\n" for x in lines[start : start + 500]).encode(), 1.0)
        printer.show(1.0)
    printer.close(1.0)
    printer.put_away()
    assert len(front.shown["stdout"]) < BURST + 100_000
    for rank, lines in said.items():
        parts = [line[1:].partition("] ") for line in front.shown["stdout"].splitlines()]
        shown = [text for label, _, text in parts if rank in parse_ranks(label, 8)]
        (notice,) = [x for x in shown if "hidden" in x]
        at = shown.index(notice)
        assert shown[:at] == lines[:at]
        assert shown[at + 1 :] == lines[-20:]
        assert notice.startswith(f"{9000 - at - 20:,} lines hidden")
        assert (tmp_path / f"rank{rank}.log").read_text().split() == lines


def test_ranks_that_finish_before_they_are_shown(tmp_path: Path) -> None:
    """What was let in and is hidden after all, because the ranks are too much together, stays in its place."""
    front = _Front()
    printer = _printer(front, tmp_path)
    said = {rank: [f"{rank}-{i}-{'x' * 60}" for i in range(40_000)] for rank in range(2)}
    for rank, lines in said.items():
        printer.text(rank, "stdout", "".join(f"{line}\n" for line in lines).encode(), 1.0)
    for rank in said:
        printer.finish(rank, 1.0)
    printer.close(1.0)
    printer.put_away()
    for rank, lines in said.items():
        shown = [x[4:] for x in front.shown["stdout"].splitlines() if x.startswith(f"[{rank}] ")]
        (notice,) = [x for x in shown if "hidden" in x]
        at = shown.index(notice)
        assert shown[:at] == lines[:at]
        assert shown[at + 1 :] == lines[-20:]
        assert notice.startswith(f"{40_000 - at - 20:,} lines hidden")


def test_output_goes_on_after_a_flood(tmp_path: Path) -> None:
    """A rank that calmed down is shown again, its unfinished line too, and a second flood is told of as the first."""
    front = _Front()
    printer = _printer(front, tmp_path)
    _feed(printer, 1, FLOOD + b"unfin", 1.0)
    printer.show(1.2)
    printer.show(5.0)
    printer.text(1, "stdout", b"ished\n", 5.0)
    printer.show(6.0)
    assert "[1] unfinished\n" in front.shown["stdout"]
    assert not front.lines
    _feed(printer, 1, FLOOD, 100.0)
    printer.close(100.1)
    assert front.shown["stdout"].count("hidden") == 2
    printer.put_away()
    assert (tmp_path / "rank1.log").read_bytes() == FLOOD + b"unfinished\n" + FLOOD


def test_an_unlimited_sink_gets_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A script's output may go to a file: nothing is hidden, and there is no log."""
    printer = _printer(TextSink(), tmp_path)
    _feed(printer, 0, FLOOD, 1.0)
    printer.close(1.0)
    printer.put_away()
    assert capsys.readouterr().out.count("\n") == 100_000
    assert not os.listdir(tmp_path)


def test_normal_output_leaves_no_log(tmp_path: Path) -> None:
    """A log of which nobody was told goes with its run."""
    printer = _printer(_Front(), tmp_path)
    _feed(printer, 0, LINE * 10_000, 1.0)
    assert os.listdir(tmp_path) == ["rank0.log"]
    printer.close(1.0)
    printer.put_away()
    assert not os.listdir(tmp_path)


def test_without_a_disk_more_of_the_end_is_shown(tmp_path: Path) -> None:
    """Where no log can be made that is said, and all that is in memory of the end is shown."""
    front = _Front()
    printer = _printer(front, tmp_path / "missing")
    _feed(printer, 1, FLOOD, 1.0)
    printer.close(1.0)
    printer.put_away()
    (told,) = front.shown["stderr"].splitlines()
    assert told.startswith(f"nbsync: the log of rank 1, {tmp_path}/missing, cannot be written: No such file")
    head, end = front.shown["stdout"].split(" lines hidden; there is no log\n")
    assert len(head) < BURST
    assert end.count("\n") == RING // 80  # the first line is cut


def test_a_full_disk_ends_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last space of the disk is not taken; what was written stays, and the message says so."""
    usage = logs_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(logs_module.shutil, "disk_usage", lambda path: usage._replace(free=7 << 20))
    warned: list[str] = []
    log = Log(Logs(tmp_path), 3, warned.append)
    log.keep()
    for _ in range(10):
        log.write(FLOOD)
    log.close()
    assert not log.is_whole
    assert len(warned) == 1
    assert "the disk is nearly full (7 MB free)" in warned[0]


def test_a_log_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endless flood does not fill the disk: the log ends, and that is said."""
    monkeypatch.setattr(logs_module, "_MOST", 20 << 20)
    warned: list[str] = []
    log = Log(Logs(tmp_path), 3, warned.append)
    log.keep()
    for _ in range(10):
        log.write(FLOOD)
    log.close()
    assert (tmp_path / "rank3.log").stat().st_size == 2 * len(FLOOD)
    assert len(warned) == 1
    assert "it is as long as a log may be" in warned[0]


def test_old_logs_go(tmp_path: Path) -> None:
    """A session keeps its newest logs."""
    logs = Logs(tmp_path)
    for number in range(30):
        log = Log(logs, 0, partial(pytest.fail))
        log.write(b"%d" % number)
        log.keep()
        log.close()
    kept = sorted(int(path.read_text()) for path in tmp_path.iterdir())
    assert kept == list(range(10, 30))

"""A preflight as a page of text."""

from collections.abc import Iterator

from ptools.launcher.preflight.report import Bandwidth, Check, PreflightReport, Row, on


def page(report: PreflightReport) -> str:
    """The machine, the checks, the bandwidth, and the verdict as the last line."""
    parts = [_rows(report.rows), _checks(report.checks), _bandwidth(report.bandwidth)]
    return "\n".join("".join(f"{line}\n" for line in part) for part in [*parts, [report.verdict]])


def _rows(rows: tuple[Row, ...]) -> Iterator[str]:
    width = max(len(row.name) for row in rows)
    for row in rows:
        yield f"{row.name:{width}}  {row.value}"
        if row.warning:
            yield f"{'':{width}}  ! {row.warning}"


def _checks(checks: tuple[Check, ...]) -> Iterator[str]:
    width = max(len(check.name) for check in checks)
    for check in checks:
        failed = check.state == "failed"
        where = f" on {on(check.ranks)}: {check.detail}" if failed else ""
        yield f"{check.name:{width}}  {check.state}{where}"


def _bandwidth(measured: tuple[Bandwidth, ...]) -> Iterator[str]:
    if not measured:
        yield "bus bandwidth: not measured"
        return
    yield "all_reduce       time  bus bandwidth"
    for one in measured:
        yield f"{_size(one.size):>10}  {one.seconds * 1e3:6.2f} ms  {one.bus / 1e9:8.2f} GB/s"


def _size(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"

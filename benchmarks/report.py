# SPDX-License-Identifier: Apache-2.0
"""One row of the table, and the table."""

from __future__ import annotations

import platform
from types import MappingProxyType
from typing import Any, Mapping, NamedTuple, Sequence


class Row(NamedTuple):
    """One figure.

    Args:
        must, aims: the limits, in `unit`; None where there is none.
        at_least: the limits are lower ones; upper ones otherwise.
        details: what else was measured with it, for the JSON file and the reader.
    """

    name: str
    measured: float
    unit: str
    must: float | None = None
    aims: float | None = None
    at_least: bool = False
    details: Mapping[str, Any] = MappingProxyType({})

    def meets(self, limit: float | None) -> bool:
        """Whether the figure is on the good side of `limit`."""
        return limit is None or (self.measured >= limit if self.at_least else self.measured <= limit)

    @property
    def verdict(self) -> str:
        """What the last column shows."""
        if self.must is None and self.aims is None:
            return ""
        if not self.meets(self.must):
            return "MISSED"
        return "ok" if self.meets(self.aims) else "ok, aim missed"


def as_dict(row: Row) -> dict[str, Any]:
    """For the JSON file."""
    return {**row._asdict(), "details": dict(row.details), "verdict": row.verdict}


def machine() -> dict[str, str]:
    """What the figures depend on."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def format_row(row: Row) -> str:
    """One line of the table."""
    sign = ">=" if row.at_least else "<="
    must, aims = (
        "-" if limit is None else f"{sign} {limit:g}" for limit in (row.must, row.aims)
    )  # fmt: skip
    return f"{row.name:<54} {row.measured:>10.3f} {row.unit:<10} {must:>9} {aims:>9}  {row.verdict}"


def format_table(rows: Sequence[Row]) -> str:
    """The table, and below it the details."""
    head = f"{'':<54} {'measured':>10} {'':<10} {'must':>9} {'aims':>9}"
    lines = [head, *map(format_row, rows), "", "details"]
    for row in rows:
        if row.details:
            items = "  ".join(f"{key} {_short(value)}" for key, value in row.details.items())
            lines.append(f"  {row.name}: {items}")
    return "\n".join(lines)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of the README, from the rows of the JSON file."""
    lines = ["| | measured | to reach | |", "|---|---|---|---|"]
    for row in rows:
        sign = "≥" if row["at_least"] else "≤"
        must = f"{sign} {row['must']:g}" if row["must"] is not None else ""
        verdict = "**missed**" if row["verdict"] == "MISSED" else ""
        figure = f"{row['measured']:.3g}" if row["measured"] < 1000 else f"{row['measured']:,.0f}"
        lines.append(
            f"| {row['name']} | {figure} {row['unit']}{_beside_raw(row['details'])} | {must} | {verdict} |"
        )
    return "\n".join(lines) + "\n"


def _beside_raw(details: Mapping[str, Any]) -> str:
    """What plain sockets do in the same run: it depends on the machine."""
    if "raw/s" in details:
        return f" ({details['messages/s']:,.0f} and {details['raw/s']:,.0f}/s)"
    if "raw p50 us" in details:
        return f" ({details['vault p50 us']:.0f} and {details['raw p50 us']:.0f} us)"
    if "raw %" not in details:
        return ""
    sealed = f"; raw and libsodium: {details['sealed %']:.2g} %" if "sealed %" in details else ""
    return f" (raw: {details['raw %']:.2g} %{sealed})"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

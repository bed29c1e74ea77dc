"""Compares two records of hook orders, scenario by scenario: ``compare_hooks.py OURS.json REFERENCE.json``.

A record maps each scenario to its ``events`` (a list of strings) and to further facts (counters, metrics, errors).
Printed is, for each scenario that differs, the first differing event with what led to it, and each differing fact; a
summary line ends the output. Exit code 1 when anything differs or a scenario is missing.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from pathlib import Path
from typing import Any

Scenario = dict[str, Any]


def first_difference(ours: list[str], reference: list[str]) -> int | None:
    """Returns the index of the first event that differs (one list may just be longer), or None."""
    for index, (left, right) in enumerate(zip(ours, reference, strict=False)):
        if left != right:
            return index
    return None if len(ours) == len(reference) else min(len(ours), len(reference))


def describe_events(ours: list[str], reference: list[str], context: int) -> list[str]:
    """Returns lines on the first differing event: what led to it, and how both go on."""
    index = first_difference(ours, reference)
    if index is None:
        return []
    matcher = difflib.SequenceMatcher(None, ours, reference, autojunk=False)
    differing = sum(max(a2 - a1, b2 - b1) for tag, a1, a2, b1, b2 in matcher.get_opcodes() if tag != "equal")
    lines = [f"  event {index} differs ({differing} of {len(reference)} in all; ours has {len(ours)})"]
    lines += [f"      {event}" for event in ours[max(index - context, 0) : index]]
    for mark, events in (("ours     ", ours), ("reference", reference)):
        following = events[index : index + context + 1] or ["(ends here)"]
        lines += [f"    {mark} {event}" for event in following]
    return lines


def describe_facts(ours: Scenario, reference: Scenario) -> list[str]:
    """Returns one line for each fact beside the events that differs."""
    return [
        f"  {name}: ours {ours.get(name)!r}, reference {reference.get(name)!r}"
        for name in dict.fromkeys([*reference, *ours])
        if name != "events" and ours.get(name) != reference.get(name)
    ]


def compare(ours: dict[str, Scenario], reference: dict[str, Scenario], context: int) -> tuple[list[str], int]:
    """Returns the report and the number of scenarios that differ or are missing."""
    lines, differing = [], 0
    for name in dict.fromkeys([*reference, *ours]):
        if name not in ours or name not in reference:
            found = [f"  missing in {'ours' if name not in ours else 'the reference'}"]
        else:
            found = describe_events(ours[name]["events"], reference[name]["events"], context)
            found += describe_facts(ours[name], reference[name])
        if found:
            differing += 1
            lines += [name, *found]
    total = len({*ours, *reference})
    return [*lines, f"{total - differing} of {total} scenarios equal, {differing} differ"], differing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--context", type=int, default=4, help="events shown before and after a difference")
    parser.add_argument("--only", help="comma-separated names of scenarios")
    args = parser.parse_args()
    records = [json.loads(path.read_text()) for path in (args.ours, args.reference)]
    if args.only:
        names = args.only.split(",")
        records = [{name: record[name] for name in names if name in record} for record in records]
    lines, differing = compare(records[0], records[1], args.context)
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())

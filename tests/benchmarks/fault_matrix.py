"""What becomes of a push when one thing fails: every endpoint, moment and kind of fault, once and for good.

    python tests/benchmarks/fault_matrix.py
    python tests/benchmarks/fault_matrix.py --endpoints commit,tag --json

Each cell is a push of a small adapter to a Hub of its own on loopback, with the real client. `landed 1`: it returned,
and the branch has one commit of it. `refused`: the Hub said no, `gave up`: it failed to the end; the number is the
commits that are there then. Left of the bar the fault strikes once, right of it every time. After each that did not
land, the same push is made again without the fault. Torn: a commit holds a part. Twice: there are two. Untrue: what
was said is not how it is, or the same again does not end in one commit. About 6 minutes on one core; exit code 1 if
any cell is torn, twice or untrue.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from cards import small_base
from fault_cells import CELLS, ENDPOINTS, KINDS, MOMENTS, Cell, Outcome, outcome, totals
from huggingface_hub.utils import disable_progress_bars, logging
from push_runs import saved_adapter
from rank_report import table


def matrix(found: dict[Cell, Outcome]) -> str:
    """Return the outcomes as a Markdown table, a row for each endpoint and moment."""
    rows = []
    for where in dict.fromkeys(cell.where for cell in found):
        for when in MOMENTS:
            pairs = [[found.get(Cell(where, when, what, stays)) for stays in (False, True)] for what in KINDS]
            rows.append([where, when, *(" \\| ".join(map(str, pair)) for pair in pairs)])
    return table(["endpoint", "moment", *map(str, KINDS)], rows)


def main(arguments: list[str] | None = None) -> int:
    """Print the matrix and its totals; return 1 if a cell is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoints", default=",".join(ENDPOINTS), help="which, with commas between")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each cell instead")
    options = parser.parse_args(arguments)
    cells = [cell for cell in CELLS if cell.where in options.endpoints.split(",")]
    found: dict[Cell, Outcome] = {}
    with tempfile.TemporaryDirectory() as scratch:
        adapter = saved_adapter(Path(scratch, "adapter"), small_base(Path(scratch, "base")))
        for number, cell in enumerate(cells):
            found[cell] = outcome(cell, adapter, Path(scratch, f"hub-{number}"))
            if options.json:
                print(
                    json.dumps({"cell": str(cell), "outcome": str(found[cell]), "said": found[cell].said}), flush=True
                )
    if not options.json:
        print(matrix(found))
    print(f"\n{totals(found.values())}")
    return int(any(each.torn or each.twice or each.untrue for each in found.values()))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    disable_progress_bars()
    logging.set_verbosity_error()
    sys.exit(main())

"""The tables of docs/performance.md on what training needs of a TPU, without one.

    pip install -e '.[tpu]'
    python benchmarks/preflight_table.py [--case 'sdxl_zh 640x640'] [--topology v5e:4x4 v6e:4x4]

For every case and topology: the largest batch a chip that fits, found by `pea-jax preflight --json`
from one row a chip upwards (a program's memory grows evenly with its rows, so the first says where
to look), and what it needs. Reports are kept in train.compilation_cache: an interrupted call goes
on where it was. Each program takes minutes to compile on two cores.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

#: Config and size of the pictures: the paper's settings, its largest bucket, and SDXL's own size.
CASES = ("sd15_zh 512x512", "sdxl_zh 640x640", "sdxl_zh 1024x1024")


def preflight(case: str, topology: str, rows: int, others: list[str]) -> dict[str, Any]:
    """The report of one program."""
    config, size = case.split()
    command = [sys.executable, "-m", "pea_jax.cli", "preflight", "--json", *others]
    command += ["--config", str(ROOT / "configs" / f"{config}.py"), "--topology", topology]
    command += ["--size", size, "--batch", str(rows)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise SystemExit(done.stderr)
    told = json.loads(done.stdout)
    (report,) = told["programs"]
    return report | {"remat": told["remat"]}


def largest(case: str, topology: str, others: list[str]) -> dict[str, Any]:
    """The report of the most rows that fit: the next row does not."""
    rows, report = 1, preflight(case, topology, 1, others)
    if not report["fits"]:
        return report
    a_row = max(report["temporary_bytes"], 1)
    rows = max(2, 1 + int((report["limit"] - report["total"]) // a_row))
    fitting, failing = report, None
    while failing is None or failing - fitting["rows"] > 1:
        tried = preflight(case, topology, rows, others)
        if tried["fits"]:
            fitting = tried
            rows = failing - 1 if failing else rows + 1
        else:
            failing = rows
            rows = max(fitting["rows"] + 1, rows - 1)
        print(f"{case}, {topology}, {tried['rows']} rows: {tried['fits']}", file=sys.stderr)
    return fitting


def line(case: str, topology: str, report: dict[str, Any]) -> str:
    """A line of the table."""
    rows = report["rows_by_part"]
    cells = [case, topology, report["remat"], f"{report['rows']} ({rows['native']})"]
    if not report["fits"]:
        return f"| {' | '.join(cells)} | does not fit |"
    memory = [report["argument_bytes"], report["temporary_bytes"], report["total"]]
    cells += [f"{size / 1e9:.1f}" for size in memory]
    cells += [f"{report['flops'] / 1e12:.1f}", f"{report['bytes'] / 1e9:.0f}"]
    cells += [f"{1e3 * report['roofline_seconds']:.0f} ({report['bound']})"]
    cells += [f"{1e3 * report['seconds']['compute']:.0f}", f"{report['images_per_second']:.2f}"]
    cells += [f"{report['compile_seconds']:.0f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", default=CASES)
    parser.add_argument("--topology", nargs="+", default=["v5e:4x4", "v6e:4x4"])
    parser.add_argument("--rows", type=int, help="these rows a chip, rather than the most that fit")
    options, others = parser.parse_known_args()
    names = ["case", "topology", "remat", "rows (native)", "arguments GB", "temporaries GB"]
    names += ["total GB", "TFLOP", "GB accessed", "roofline ms", "of it compute", "images/s"]
    names += ["compiled in s"]
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for case in options.case:
        for topology in options.topology:
            if options.rows:
                report = preflight(case, topology, options.rows, others)
            else:
                report = largest(case, topology, others)
            print(line(case, topology, report), flush=True)


if __name__ == "__main__":
    main()

"""The tables of docs/performance.md on what training needs of a TPU, without one.

    pip install -e '.[tpu]'
    python benchmarks/preflight_table.py [--case 'sdxl_zh 640x640'] [--topology v5e:4x4 v6e:4x4]

For every case and topology: the largest batch a chip that fits, found by halving with `pea-jax
preflight --json`, and what it needs. What the memory of a few rows says does not tell it: where
memory gets short the compiler computes some things again. Reports are kept in
train.compilation_cache: an interrupted call goes on where it was. Each program takes minutes to
compile on two cores.
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
    command = [sys.executable, "-m", "pea_jax", "preflight", "--json", *others]
    command += ["--config", str(ROOT / "configs" / f"{config}.py"), "--topology", topology]
    command += ["--size", size, "--batch", str(rows)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise SystemExit(done.stderr)
    told = json.loads(done.stdout)
    (report,) = told["programs"]
    return report | {"remat": told["remat"]}


def largest(case: str, topology: str, others: list[str], rows: int) -> dict[str, Any]:
    """The report of the most rows that fit: the next row does not. Tries `rows` first."""
    tried: dict[int, dict[str, Any]] = {}
    fitting, failing = 0, None
    while failing != fitting + 1:
        tried[rows] = preflight(case, topology, rows, others)
        told = f"{tried[rows]['total'] / 1e9:.1f} GB, fits: {tried[rows]['fits']}"
        print(f"{case}, {topology}, {rows} rows: {told}", file=sys.stderr, flush=True)
        if tried[rows]["fits"]:
            fitting = rows
        else:
            failing = rows
        rows = (fitting + failing) // 2 if failing else fitting + max(1, fitting // 4)
    return tried[fitting or failing]


def line(case: str, topology: str, report: dict[str, Any]) -> str:
    """A line of the table."""
    rows = report["rows_by_part"]
    cells = [case, topology, report["remat"], f"{report['rows']} ({rows['native']})"]
    if not report["fits"]:
        return f"| {' | '.join(cells)} | does not fit |"
    parts = ("argument_bytes", "temporary_bytes", "code_bytes", "total")
    cells += [f"{report[part] / 1e9:.1f}" for part in parts]
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
    parser.add_argument("--first", type=int, default=1, help="the rows to try first")
    options, others = parser.parse_known_args()
    names = ["case", "topology", "remat", "rows (native)", "arguments GB", "temporaries GB"]
    names += ["program GB", "total GB", "TFLOP", "GB accessed", "roofline ms"]
    names += ["of it compute", "images/s", "compiled in s"]
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for case in options.case:
        for topology in options.topology:
            if options.rows:
                report = preflight(case, topology, options.rows, others)
            else:
                report = largest(case, topology, others, options.first)
            print(line(case, topology, report), flush=True)


if __name__ == "__main__":
    main()

"""The tables in docs/performance.md of what training needs on a TPU, without a TPU.

    pip install -e '.[tpu]'
    python benchmarks/preflight_table.py [--case 'sdxl_zh 640x640'] [--topology v5e:4x4 v6e:4x4]

For every case and topology, finds the largest batch per chip that fits, by bisection with `pea-jax
preflight --json`, and prints what it needs. Memory cannot be extrapolated from a few rows, because
the compiler recomputes more when memory gets short. Reports are cached in train.compilation_cache,
so an interrupted call can be repeated. Each program takes minutes to compile on two cores.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

#: Config and image size: the paper's settings, its largest bucket, and SDXL's native size.
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
    result = json.loads(done.stdout)
    (report,) = result["programs"]
    return report | {"remat": result["remat"]}


def largest(case: str, topology: str, others: list[str], rows: int) -> dict[str, Any]:
    """The report of the largest number of rows that fits. Tries `rows` first."""
    tried: dict[int, dict[str, Any]] = {}
    fitting, failing = 0, None
    while failing != fitting + 1:
        tried[rows] = preflight(case, topology, rows, others)
        outcome = f"{tried[rows]['total'] / 1e9:.1f} GB, fits: {tried[rows]['fits']}"
        print(f"{case}, {topology}, {rows} rows: {outcome}", file=sys.stderr, flush=True)
        if tried[rows]["fits"]:
            fitting = rows
        else:
            failing = rows
        rows = (fitting + failing) // 2 if failing else fitting + max(1, fitting // 4)
    return tried[fitting or failing]


def line(case: str, topology: str, report: dict[str, Any]) -> str:
    """One line of the table."""
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
    parser.add_argument("--rows", type=int, help="rows per chip; default: the most that fit")
    parser.add_argument("--first", type=int, default=1, help="number of rows to try first")
    options, others = parser.parse_known_args()
    names = ["case", "topology", "remat", "rows (native)", "arguments GB", "temporaries GB"]
    names += ["program GB", "total GB", "TFLOP", "GB accessed", "roofline ms"]
    names += ["compute ms", "images/s", "compiled in s"]
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

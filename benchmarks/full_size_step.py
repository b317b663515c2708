"""One train step of a full-size model on this machine's CPUs, from the command line.

    python tools/make_random_checkpoint.py sd15 --output DIR/sd15              # needs PyTorch
    python tools/make_random_checkpoint.py xlm-roberta-large --output DIR/xlmr
    python benchmarks/full_size_step.py DIR [--batch 2] [--image-size 512] [--dtype float32]

Runs `pea-jax train` on configs/sd15_zh.py for one step, with these folders and with enlarged images
of tinyworld. Prints time and peak memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, help="folder that contains sd15/ and xlmr/")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--remat", default="none")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder, "run")
        fields = {
            "model.base": options.models / "sd15",
            "model.language_encoder": options.models / "xlmr",
            "model.dtype": options.dtype,
            "model.remat": options.remat,
            "data.dataset": "tinyworld",
            "data.image_size": options.image_size,
            "data.batch_size": options.batch,
            "data.native_batch_size": options.batch // 2,
            "data.workers": 0,
            "train.steps": 1,
            "train.log_every": 1,
            "train.sample_every": 0,
            "train.compilation_cache": "",
        }
        command = [sys.executable, "-m", "pea_jax", "train"]
        command += ["--config", str(ROOT / "configs" / "sd15_zh.py"), "--workdir", str(workdir)]
        command += [f"--config.{name}={value}" for name, value in fields.items()]
        start = time.perf_counter()
        subprocess.run(command, check=True, cwd=ROOT)
        seconds = time.perf_counter() - start
        metrics = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    features = sum(name.startswith("feature/") for name in metrics)
    print(f"loss {metrics['loss']:.4f}, {features} features")
    print("| rows | pixels | type | remat | wall s | CPU s | peak memory GB |")
    print("|---|---|---|---|---|---|---|")
    cells = [options.batch, options.image_size, options.dtype, options.remat, f"{seconds:.0f}"]
    cells += [f"{usage.ru_utime + usage.ru_stime:.0f}", f"{usage.ru_maxrss * 1024 / 1e9:.1f}"]
    print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()

"""Preflight compiles the programs that run, and prints their cost in tables and in JSON.

Tests of the TPU compiler need libtpu; all others use the local devices.
"""

import dataclasses
import functools
import json

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from pea_jax.assembly import trainer
from pea_jax.cli import main
from pea_jax.runtime import parallel
from pea_jax.runtime.chips import Chip
from pea_jax.tasks.preflight import preflight, task, tune
from pea_jax.tasks.preflight.report import advice
from pea_jax.tasks.preflight.roofline import Cost
from pea_jax.tasks.preflight.workloads import Target, Workload
from tests import libtpu, tiny
from tests.libtpu import needs_libtpu


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preflight")
    models, data_dir = tiny.write_models(folder / "models"), tiny.write_data(folder / "data")
    # Costs are cached there, so each program is compiled once.
    return tiny.config(models, data_dir, train__compilation_cache=str(folder / "kept"))


@pytest.fixture
def command(config, tmp_path):
    """Words of a command line that names this config."""
    file = tmp_path / "config.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict({config.to_dict()!r})\n"
    )
    # In this process the compiled programs of other tests are not to be kept.
    return ["preflight", "--config", str(file), "--config.train.compilation_cache="]


def _described(tree):
    return {
        jax.tree_util.keystr(path): (leaf.shape, leaf.dtype, leaf.sharding.spec)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize("fsdp", [1, 4])
def test_abstract_arguments_are_those_of_a_run(config, fsdp, monkeypatch):
    """Another shape, type or sharding would make another program than the one that trains."""
    rule = functools.partial(parallel.parameter_sharding, min_size=64)
    monkeypatch.setattr(parallel, "parameter_sharding", rule)
    config = config.copy_and_resolve_references()
    config.mesh.fsdp = fsdp
    loaded = trainer.build(config)
    abstract = trainer.make_trainer(config, loaded.mesh, abstract=True)
    for name in ("state", "frozen", "key"):
        shapes = _described(getattr(abstract, name))
        assert shapes == _described(getattr(loaded, name)), name
        assert all(
            isinstance(leaf, jax.ShapeDtypeStruct)
            for leaf in jax.tree.leaves(getattr(abstract, name))
        )
    if fsdp > 1:
        split = [where for *_, where in _described(abstract.frozen).values() if "fsdp" in where]
        assert split
    rows = {"native": 8, "parallel": 8}
    wanted = parallel.to_global(next(loaded.loader), loaded.mesh)
    assert _described(trainer.batch_shapes(abstract, rows, (16, 16))) == _described(wanted)
    loaded.loader.close()


def test_sizes_are_those_that_the_run_trains_on(config, monkeypatch, capsys):
    """The largest decides what fits: it is what is compiled where no size is given."""
    monkeypatch.setattr(task, "measure", lambda *arguments: _made_up(1, "none"))
    names = {None: "default", "buckets": "buckets", "largest": "largest"}

    def sizes():
        return {
            name: [workload.size for workload, _ in preflight(config, topology="local", size=size)]
            for size, name in names.items()
        }

    square = [(16, 16)]
    assert sizes() == {"default": square, "buckets": square, "largest": square}
    config = config.copy_and_resolve_references()
    config.data.buckets = ((16, 24, 0.2), (24, 16, 0.3), (16, 16, 0.5))
    largest = [(24, 16)]  # the more frequent of equals
    every = [(16, 24), (24, 16), (16, 16)]
    assert sizes() == {"default": largest, "buckets": every, "largest": largest}


@pytest.mark.parametrize("task", ["train", "sample"])
def test_local_devices_run_what_was_compiled(config, task, capsys):
    """A CPU has no roofline, but memory, FLOPs and collectives like any other device."""
    ((workload, cost),) = preflight(config, topology="local", task=task)
    assert workload.size == (16, 16)
    assert cost.fits
    assert cost.limit is cost.seconds is None
    assert cost.flops > 0
    weights = cost.arguments["weights"]
    assert cost.argument_bytes >= sum(cost.arguments.values()) > weights > 0
    assert cost.total >= cost.argument_bytes + cost.temporary_bytes
    assert bool(cost.collectives) == (task == "train")  # the gradients' sum
    assert "temporaries" in capsys.readouterr().out


def test_a_kept_report_is_that_of_the_same_program(config, monkeypatch):
    """Compiling takes minutes for the real models: what is known is not made again."""
    ((_, cost),) = preflight(config, topology="local")
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)
    ((_, again),) = preflight(config, topology="local")
    assert again == cost
    with pytest.raises(TypeError):
        preflight(config, topology="local", size="16x24")
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib=65536")
    with pytest.raises(TypeError):
        preflight(config, topology="local")


def test_a_sampler_costs_as_much_more_as_it_has_more_steps(config):
    """A loop that is counted once would make the numbers of steps alike."""
    flops = {}
    for steps in (2, 10):
        config.sample.steps = steps
        ((_, cost),) = preflight(config, topology="local", task="sample")
        flops[steps] = cost.flops
    config.sample.steps = 2
    a_step = (flops[10] - flops[2]) / 8
    assert 0 < flops[2] - 2 * a_step < flops[2]  # the encoders and the decoder
    assert flops[10] > 2 * flops[2]


def test_json_is_one_object_and_nothing_else(command, capsys):
    assert main.main([*command, "--topology", "local", "--json", "--size", "16x24"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["topology"], result["devices"], result["fits"]) == ("local", 8, True)
    assert [(one["height"], one["width"]) for one in result["programs"]] == [(16, 24)]
    assert result["programs"][0]["rows_by_part"] == {"native": 1, "parallel": 1}


@pytest.mark.parametrize(
    ("words", "message", "status"),
    [
        ("--topology v5e:3x5x7", "--topology v5e:3x5x7: expected", 1),
        ("--topology local --size 16", "--size: expected HxW", 2),
        ("--topology local --size 17x16", "expected a multiple of 2", 1),
        ("--topology local --task fly", "--task: expected one of train, sample", 2),
        ("--topology local --tune", "the memory and the speed of a 'cpu' are not known", 1),
        (
            "--topology local --config.data.batch_size=20 --config.data.native_batch_size=8",
            "nearest: --config.data.batch_size=16 --config.data.native_batch_size=8",
            1,
        ),
        ("--topology local --config.model.base=no/where", "no/where: neither a folder here", 1),
    ],
)
def test_what_cannot_be_is_said_in_one_line(command, capsys, words, message, status):
    if "v5e" in words and not libtpu.HERE:
        message = "needs libtpu"
    assert main.main([*command, *words.split()]) == status
    complaint = capsys.readouterr().err.strip()
    assert message in complaint
    assert "\n" not in complaint


@needs_libtpu
@pytest.mark.parametrize("task", ["train", "sample"])
def test_a_tpu_that_is_not_here(command, capsys, task, tmp_path):
    """Only the cost is cached, not in jax's own cache: the compiler could not read it back."""
    kept = tmp_path / "kept"
    more = ["--topology", "v5e:2x2", "--task", task, f"--config.train.compilation_cache={kept}"]
    before = jax.config.jax_compilation_cache_dir
    compilation_cache.reset_cache()
    try:
        assert main.main([*command, *more, "--json"]) == 0
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
    printed = capsys.readouterr()
    assert not list(kept.glob("jit_*"))
    assert len(list((kept / "preflight").iterdir())) == 1
    result = json.loads(printed.out)
    assert printed.err == ""
    assert result["device_kind"] == "TPU v5 lite"
    (program,) = result["programs"]
    assert program["bound"] in ("compute", "memory", "interconnect")
    assert 0 < program["total"] < program["limit"]


def test_what_does_not_fit_is_listed_with_what_to_change(command, capsys, monkeypatch):
    """The compiler's words are those of libtpu 0.0.42.1."""
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm. "
        "Exceeded hbm capacity by 4.75G.\n\n  Largest program allocations in hbm:\n\n"
        '  1. Size: 2.50G\n     Operator: op_name="jit(step)/dot"\n'
        "     Shape: bf16[16,4096,640]{2,1,0}\n     Unpadded size: 2.50G\n"
    )

    def compile_(self):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_)
    assert main.main([*command, "--topology", "local", "--batch", "4"]) == 1
    printed = capsys.readouterr()
    assert "does not fit" in printed.out
    assert "bf16[16,4096,640]" in printed.out
    assert "--config.model.remat=blocks" in printed.out
    assert "--batch 2" in printed.out
    assert "--config.train.accumulation_steps=2" in printed.out
    assert "train 16x16, 4 rows a chip (2 native): 22.01 GB" in printed.err
    assert len(printed.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("rows", "now", "advised"), [((3, 12), 1, 3), ((4, 8), 2, 4), ((1, 3), 1, None), ((0, 5), 1, 5)]
)
def test_slices_that_are_advised_divide_the_rows_of_each_part(config, rows, now, advised):
    """SDXL's batch on sixteen chips has three native rows and twelve parallel ones a chip."""
    config = config.copy_and_resolve_references()
    config.train.accumulation_steps = now
    workload = Workload("train", (16, 16), dict(zip(("native", "parallel"), rows, strict=True)))
    cost = dataclasses.replace(_made_up(1, "none"), fits=False)
    target = Target("local", jax.devices(), None, None)
    changes = "\n".join(advice(config, workload, cost, target))
    wanted = f"--config.train.accumulation_steps={advised}: " if advised else None
    assert (wanted in changes) if wanted else ("accumulation_steps" not in changes)


def _made_up(rows, remat, *, limit=100.0):
    """Six bytes a row and ten of weights; less memory and more work with remat."""
    work = {"none": 1.0, "blocks": 1.4, "full": 1.8}[remat]
    total = round(10 + rows * {"none": 30, "blocks": 6, "full": 4}[remat])
    seconds = {"compute": rows * work, "memory": 4 + 0.5 * rows, "interconnect": 0.0}
    return Cost(
        fits=total <= limit,
        limit=limit,
        arguments={},
        rows=rows,
        compile_seconds=0.0,
        total=total,
        seconds=seconds,
    )


def test_tune_goes_on_where_the_compiler_makes_room(config, monkeypatch):
    """By what a row adds three would fit; the compiler computes some things again, and five do."""

    def fake(config, trainer, workload, target):
        rows = sum(workload.rows.values())
        cost = _made_up(rows, config.model.remat)
        recomputed = dataclasses.replace(cost, total=100, fits=True)
        return recomputed if rows in (4, 5) else cost

    monkeypatch.setattr(tune, "measure", fake)
    chip = Chip("made up", flops=1.0, memory=100.0, bandwidth=1.0, interconnect=1.0)
    target = Target("made up", jax.devices(), chip, None)
    best = tune.tune(config, target, "train", [(16, 16)])
    assert (best.remat, best.rows) == ("none", 5)


def test_tune_names_the_fastest_that_fits(config, monkeypatch, capsys):
    """Three rows without remat are slower than fifteen with it; "full" could not win."""
    measured = []

    def fake(config, trainer, workload, target):
        rows = sum(workload.rows.values())
        measured.append((config.model.remat, rows))
        return _made_up(rows, config.model.remat)

    monkeypatch.setattr(tune, "measure", fake)
    chip = Chip("made up", flops=1.0, memory=100.0, bandwidth=1.0, interconnect=1.0)
    target = Target("made up", jax.devices(), chip, None)
    best = tune.tune(config, target, "train", [(16, 16)])
    assert (best.remat, best.rows) == ("blocks", 15)
    wanted = {"none": (1, 2, 3, 4), "blocks": (1, 2, 15, 18), "full": (1,)}
    assert measured == [(remat, rows) for remat, tried in wanted.items() for rows in tried]
    output = capsys.readouterr().out
    assert "--config.data.batch_size=120 --config.data.native_batch_size=64" in output
    assert "--config.model.remat=blocks" in output

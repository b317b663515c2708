"""What `pea-jax` can do: every verb with its flags. No task is imported here, and no jax."""

import dataclasses
from collections.abc import Callable

from absl import flags

#: Adds a flag to those that it is given.
Define = Callable[[flags.FlagValues], object]


def _text(name: str, told: str) -> Define:
    return lambda values: flags.DEFINE_string(name, None, told, flag_values=values)


def _texts(name: str, told: str) -> Define:
    return lambda values: flags.DEFINE_multi_string(name, [], told, flag_values=values)


def _number(name: str, told: str) -> Define:
    return lambda values: flags.DEFINE_integer(name, None, told, flag_values=values)


def _switch(name: str, told: str) -> Define:
    return lambda values: flags.DEFINE_bool(name, False, told, flag_values=values)


_STEP = _number("step", "of the checkpoint; the latest by default")


@dataclasses.dataclass(frozen=True)
class Verb:
    """A task as the command line offers it.

    Attributes:
        summary: one line.
        example: what follows `pea-jax VERB`.
        flags: its own, handed to the task as keyword arguments of the same names.
        required: those of its flags that must be given.
        positional: the name of the one argument that is no flag, a path, which the verb takes in
            place of a config and a workdir.
        note: what is particular about --config and --workdir.
    """

    summary: str
    example: str
    flags: tuple[Define, ...] = ()
    required: tuple[str, ...] = ("workdir",)
    positional: str = ""
    note: str = "Without --config it is that of the run in the workdir."


VERBS = {
    "prepare": Verb(
        "make the data set that a config names; the same command goes on where it was stopped",
        "--config configs/prepare_laion_wukong.py --workers 16",
        (
            _number("workers", "processes of this machine that make it; 1 by default"),
            _text("beam_pipeline_options", "NAME=VALUE,... of an Apache Beam pipeline to make it"),
            _switch("latents", "and keep what the VAE makes of its pictures, for data.latents"),
            _switch("benchmark", "then read it as training does, and print images/s of that alone"),
        ),
        required=("config",),
        note="It needs no workdir.",
    ),
    "train": Verb(
        "distil an adapter; the same command goes on where a run was stopped",
        "--config configs/tiny_zh.py --workdir runs/x --config.optim.learning_rate=1e-3",
        (_text("profile", "START:COUNT traces COUNT steps after the first START, for xprof"),),
        note="A run that was begun needs no --config: it is in the workdir.",
    ),
    "sample": Verb(
        "make images of prompts with a trained adapter",
        "--workdir runs/x --prompt 一个红色的大圆形 --output images/",
        (
            _text("prompts", "a text file, one prompt a line"),
            _texts("prompt", "a prompt; may be given several times"),
            _text("output", "the folder to make"),
            _STEP,
        ),
        required=("output",),
        note="Without --config it is that of the run in the workdir; without --workdir the base "
        "model is sampled, in English.",
    ),
    "evaluate": Verb(
        "score teacher, untrained and trained adapter, and the translation baseline",
        "--workdir runs/x",
        (_text("output", "the folder of eval.json and grid.png; WORKDIR by default"), _STEP),
    ),
    "export": Verb(
        "write the adapter, and a folder that PyTorch diffusers loads",
        "--workdir runs/x --output exported/",
        (_text("output", "the folder to make; WORKDIR/export by default"), _STEP),
    ),
    "preflight": Verb(
        "compile a run for devices that need not be here: what fits, and how fast it can be",
        "--config configs/sdxl_zh.py --topology v5e:4x4",
        (
            _text("topology", "a slice of TPUs, such as v5e:4x4, or local for the devices at hand"),
            _text("task", "train or sample; train by default"),
            _text("size", "HxW in pixels, commas between several; buckets; largest of these"),
            _number("batch", "rows a chip; by default what the config makes of its batch"),
            _switch("tune", "look for the batch and the remat that are fastest"),
            _switch("json", "print one JSON object"),
        ),
        required=("config", "topology"),
        note="It needs no workdir, no weights, no data, and for a TPU no TPU.",
    ),
    "convert": Verb(
        "read an adapter's file, the authors' or ours, and write the other",
        "pytorch_model.bin --output adapter/",
        (
            _text("output", "the folder to make"),
            _text("format", "safetensors (ours, with a config.json) or torch; ours by default"),
            _text("dtype", "float32, float16 or bfloat16; that of the file by default"),
            _text("language-encoder", "what the adapter was trained with, for config.json"),
            _text("base", "the model that the adapter was trained for, for config.json"),
        ),
        required=("output",),
        positional="file",
        note="FILE is a torch pickle, a safetensors file or a folder of `pea-jax export`.",
    ),
}


def define(verb: str) -> flags.FlagValues:
    """All flags that a verb takes, its own and the common ones, not parsed yet."""
    values = flags.FlagValues()
    values.set_gnu_getopt()  # flags may follow what is none
    if not VERBS[verb].positional:
        flags.DEFINE_string("config", None, "a file such as configs/tiny_zh.py", flag_values=values)
        flags.DEFINE_string("workdir", None, "the folder of the run", flag_values=values)
        flags.DEFINE_bool(
            "distributed",
            None,
            "join the processes on the other hosts: on TPU pods, Slurm, Open MPI and Kubernetes",
            flag_values=values,
        )
    for flag in VERBS[verb].flags:
        flag(values)
    flags.DEFINE_bool("debug", False, "show where an error came from", flag_values=values)
    flags.DEFINE_bool(
        "verbose", False, "show what the libraries log", short_name="v", flag_values=values
    )
    return values


def own_flags(verb: str) -> list[str]:
    """The names of the flags that are the verb's alone."""
    values = flags.FlagValues()
    for flag in VERBS[verb].flags:
        flag(values)
    return list(values)

"""A language encoder: the text tower that reads prompts in another language, with its tokenizer."""

from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from pea_jax.models.rngs import OneKey
from pea_jax.models.text.towers import ConcatenatedTowers
from pea_jax.runtime import parallel
from pea_jax.weights.encoder_files import EncoderFiles, read_encoder_files
from pea_jax.weights.errors import WeightsError
from pea_jax.weights.load import abstract_module, load_module
from pea_jax.weights.locate import prefers_half
from pea_jax.weights.tokenizers import AnyTokenizer, BlankTokenizer, Tokenizer, join
from pea_jax.weights.youtokentome import RuCLIPTokenizer


@dataclass(frozen=True)
class LanguageConfig:
    """The small files of a language encoder.

    Attributes:
      parts: one encoder, or several whose tokens are concatenated on the feature axis.
    """

    parts: tuple[EncoderFiles, ...]

    @property
    def width(self) -> int:
        """Width of the tokens, the input width of an adapter."""
        return sum(part.config.hidden_size for part in self.parts)

    @property
    def longest(self) -> int | None:
        """The most tokens that it takes; None for any number."""
        limits = [part.config.longest for part in self.parts if part.config.longest is not None]
        return min(limits, default=None)


@dataclass(frozen=True)
class LanguageEncoder:
    """A frozen text tower with its tokenizer.

    Attributes:
      tower: ids and mask [B, L] -> tokens [B, L, width]. Of several encoders: ids and masks side by
        side on the length axis, [B, L1 + L2], and tokens [B, max(L1, L2), width].
      tokenizer: of the tower.
      width: of the tokens.
    """

    tower: nnx.Module
    tokenizer: AnyTokenizer
    width: int


def read_language_config(name: str | Path, *, allow_builtin: bool = False) -> LanguageConfig:
    """Reads (and downloads, if necessary) the small files alone, to refuse early what doesn't fit.

    Args:
      name: a short name of `registry.SHORT_NAMES` ("mul_clip"; write ./mul_clip for a folder of
        that name), "tinyworld/xlm-roberta", a folder, or an id on the Hub; `@` and a revision may
        follow a short name or an id. Several of these are joined by `+`, unless there is a file of
        that whole name.
      allow_builtin: as for `locate.resolve`.

    Raises:
      ValueError: a file that is missing, an architecture or a value that is not supported.
    """
    names = [name] if Path(name).expanduser().exists() else str(name).split("+")
    if not all(str(one).strip() for one in names):
        raise WeightsError(f"{name}: expected names with + between them, got an empty one")
    return LanguageConfig(
        tuple(read_encoder_files(one, allow_builtin=allow_builtin) for one in names)
    )


def load_language_encoder(
    name: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
    max_length: int | None = None,
    abstract: bool = False,
) -> LanguageEncoder:
    """Loads a language encoder, its frozen weights spread over `mesh`.

    Args:
      name: as for `read_language_config`.
      dtype: of the weights and of the computation; a 16-bit one prefers fp16 files.
      mesh: None leaves the weights uncommitted on the default device.
      max_length: tokens that a prompt is padded to and cut at; None uses the default of its kind
        (`encoders.EncoderKind`) or the tokenizer's own. In a joined encoder, each part keeps its
        default if that is shorter.
      abstract: as for `bases.load_base`. max_length is required where only the tokenizer knows it.

    Raises:
      ValueError: as for `read_language_config`; a max_length that the tower can't take; weights
        that are missing or don't fit.
    """
    config = read_language_config(name, allow_builtin=abstract)
    tokenizers = read_tokenizers(config, max_length, abstract=abstract)
    towers = [load_tower(part, dtype=dtype, mesh=mesh, abstract=abstract) for part in config.parts]
    tower = towers[0]
    if len(towers) > 1:
        tower = ConcatenatedTowers(towers, [tokenizer.max_length for tokenizer in tokenizers])
    return LanguageEncoder(tower, join(tokenizers), config.width)


def read_tokenizers(
    config: LanguageConfig, max_length: int | None = None, *, abstract: bool = False
) -> list[Tokenizer | BlankTokenizer]:
    """The tokenizer of every part; max_length and abstract are as for `load_language_encoder`."""
    joined = len(config.parts) > 1
    return [_tokenizer(part, max_length, joined, abstract) for part in config.parts]


def _tokenizer(
    part: EncoderFiles, max_length: int | None, joined: bool, abstract: bool
) -> Tokenizer | BlankTokenizer:
    default = part.kind.length
    length = default if max_length is None else max_length
    if joined and default is not None:
        length = min(length, default)
    if abstract and length is None:
        raise WeightsError(f"{part.folder}: without its tokenizer, a max_length has to be given")
    if abstract:
        tokenizer = BlankTokenizer(length)
    else:
        tokenizer = Tokenizer.from_folder(
            part.folder, length, kind=part.kind.tokenizer, clean=part.kind.clean
        )
    longest = part.config.longest
    if longest is not None and tokenizer.max_length > longest:
        raise WeightsError(
            f"{part.folder}: expected a max_length of at most {longest} tokens, "
            f"got {tokenizer.max_length}"
        )
    return tokenizer


def export_problems(config: LanguageConfig) -> list[str]:
    """What `encoder_folder.write_encoders` cannot write, one sentence each; [] if nothing."""
    problems = []
    for part in config.parts:
        if part.kind.tokenizer is RuCLIPTokenizer:
            try:
                RuCLIPTokenizer.from_pretrained(part.folder, local_files_only=True).to_fast()
            except (OSError, ValueError) as error:
                problems.append(f"The tokenizer cannot be written for transformers: {error}")
    return problems


def load_tower(
    part: EncoderFiles,
    *,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
    abstract: bool = False,
) -> nnx.Module:
    """Loads the tower of one part, by the arguments of `load_language_encoder`."""
    kind = part.kind
    sharding = None if mesh is None else parallel.parameter_sharding(mesh)

    def build() -> nnx.Module:
        return kind.module(part.config, rngs=OneKey(), dtype=dtype, param_dtype=dtype)

    if abstract:
        return abstract_module(build, sharding=sharding)
    return load_module(
        build,
        part.fetch(half=prefers_half(dtype)),
        sharding=sharding,
        aliases=kind.aliases,
        ignore=kind.ignore,
        stacks=kind.stacks,
    )

"""A language encoder: the text tower that reads prompts in another language, with its tokenizer."""

from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from pea_jax.models.rngs import OneKey
from pea_jax.models.text.towers import ConcatenatedTowers
from pea_jax.runtime import parallel
from pea_jax.weights.encoders import Published, Tower, TowerConfig, read_published
from pea_jax.weights.errors import WeightsError
from pea_jax.weights.load import abstract_module, load_module
from pea_jax.weights.locate import prefers_half
from pea_jax.weights.tokenizers import AnyTokenizer, BlankTokenizer, Tokenizer, join


@dataclass(frozen=True)
class LanguageConfig:
    """What the small files of a language encoder say.

    Attributes:
      parts: one, or several whose tokens are concatenated on the feature axis.
    """

    parts: tuple[Published, ...]

    @property
    def width(self) -> int:
        """Of the tokens, which an adapter must take."""
        return sum(part.tower.hidden_size for part in self.parts)

    @property
    def longest(self) -> int | None:
        """The most tokens that it takes; None for any number."""
        limits = [part.tower.longest for part in self.parts if part.tower.longest is not None]
        return min(limits, default=None)

    @property
    def tower(self) -> TowerConfig:
        """The shape of the one part."""
        return self._only.tower

    @property
    def folder(self) -> Path:
        """Of the one part."""
        return self._only.folder

    @property
    def folders(self) -> tuple[Path, ...]:
        """Of every part."""
        return tuple(part.folder for part in self.parts)

    @property
    def _only(self) -> Published:
        if len(self.parts) > 1:
            names = ", ".join(str(folder) for folder in self.folders)
            raise WeightsError(f"expected one language encoder, got {len(self.parts)}: {names}")
        return self.parts[0]


@dataclass(frozen=True)
class LanguageEncoder:
    """A frozen text tower with its tokenizer.

    Attributes:
      tower: ids and mask [B, L] -> tokens [B, L, width]. Of several encoders: ids and masks side by
        side on the length axis, [B, L1 + L2], and tokens [B, max(L1, L2), width].
      tokenizer: of the tower.
      width: of the tokens.
      folders: where the files are, one an encoder.
    """

    tower: Tower | ConcatenatedTowers
    tokenizer: AnyTokenizer
    width: int
    folders: tuple[Path, ...]


def read_language_config(
    name: str | Path, *, revision: str | None = None, published_too: bool = False
) -> LanguageConfig:
    """Reads (and fetches) the small files alone, so that what doesn't fit is refused early.

    Args:
      name: of `registry.ENCODERS` ("mul_clip"; write ./mul_clip for a folder of that name),
        "tinyworld/xlm-roberta", a folder, or an id on the Hub; or several of these with + between
        them, unless there is a file of that whole name.
      revision: on the Hub.
      published_too: as for `locate.resolve`.

    Raises:
      ValueError: a file that is missing, an architecture or a value that is not supported.
    """
    names = [name] if Path(name).expanduser().exists() else str(name).split("+")
    if not all(str(one).strip() for one in names):
        raise WeightsError(f"{name}: expected names with + between them, got an empty one")
    return LanguageConfig(
        tuple(read_published(one, revision=revision, published_too=published_too) for one in names)
    )


def load_language_encoder(
    name: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
    max_length: int | None = None,
    revision: str | None = None,
    abstract: bool = False,
) -> LanguageEncoder:
    """Loads a language encoder, its frozen weights spread over `mesh`.

    Args:
      name: as for `read_language_config`.
      dtype: of the weights and of the computation; a 16-bit one reads fp16 files where there are.
      mesh: None leaves the weights uncommitted on the default device.
      max_length: tokens that a prompt is padded to and cut at; None takes what its authors did
        (`registry.ENCODERS`), or the tokenizer's own. Of several encoders each keeps its authors'
        length where that is shorter.
      revision: on the Hub.
      abstract: as for `base.load_base`. A length that only the tokenizer knows must be given.

    Raises:
      ValueError: as for `read_language_config`; a max_length that the tower can't take; weights
        that are missing or don't fit.
    """
    config = read_language_config(name, revision=revision, published_too=abstract)
    tokenizers = read_tokenizers(config, max_length, abstract=abstract)
    towers = [
        load_tower(part, dtype=dtype, mesh=mesh, revision=revision, abstract=abstract)
        for part in config.parts
    ]
    if len(towers) == 1:
        return LanguageEncoder(towers[0], tokenizers[0], config.width, config.folders)
    lengths = tuple(tokenizer.max_length for tokenizer in tokenizers)
    return LanguageEncoder(
        ConcatenatedTowers(towers, lengths),
        join(tokenizers),
        config.width,
        config.folders,
    )


def read_tokenizers(
    config: LanguageConfig, max_length: int | None = None, *, abstract: bool = False
) -> list[Tokenizer | BlankTokenizer]:
    """The tokenizer of every part, each of the length that `load_language_encoder` tells of."""
    joined = len(config.parts) > 1
    return [_tokenizer(part, max_length, joined, abstract) for part in config.parts]


def _tokenizer(
    part: Published, max_length: int | None, joined: bool, abstract: bool
) -> Tokenizer | BlankTokenizer:
    published = part.layout.length
    length = published if max_length is None else max_length
    if joined and published is not None:
        length = min(length, published)
    if abstract and length is None:
        raise WeightsError(f"{part.folder}: without its tokenizer, a max_length has to be given")
    if abstract:
        tokenizer = BlankTokenizer(length)
    else:
        tokenizer = Tokenizer.from_folder(
            part.folder, length, kind=part.layout.tokenizer, clean=part.layout.clean
        )
    longest = part.tower.longest
    if longest is not None and tokenizer.max_length > longest:
        raise WeightsError(
            f"{part.folder}: expected a max_length of at most {longest} tokens, "
            f"got {tokenizer.max_length}"
        )
    return tokenizer


def load_tower(
    part: Published,
    *,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
    revision: str | None = None,
    abstract: bool = False,
) -> Tower:
    """Loads the tower of one part, as `load_language_encoder` does."""
    layout = part.layout
    sharding = None if mesh is None else parallel.parameter_sharding(mesh)

    def build() -> Tower:
        return layout.tower(part.tower, rngs=OneKey(), dtype=dtype, param_dtype=dtype)

    if abstract:
        return abstract_module(build, sharding=sharding)
    return load_module(
        build,
        part.fetch(half=prefers_half(dtype), revision=revision),
        sharding=sharding,
        aliases=layout.aliases,
        ignore=layout.ignore,
        stacks=layout.stacks,
    )

"""ruCLIP's tokenizer, a YouTokenToMe vocabulary, as a tokenizer of transformers.

YouTokenToMe (VKCOM) is a byte pair encoder in C++ without a release since 2020; it does not build
for current Pythons. Its model is a text file:

    C M                     numbers of characters and merges
    <code point> <id>       C lines
    <id> <id> <new id>      M lines in order of priority, highest first
    <unk> <pad> <bos> <eos>

Every word begins with U+2581 for the space before it. Consecutive unknown characters are one
unknown token.
"""

import itertools
import re
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, NamedTuple

import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from pea_jax.weights.errors import WeightsError

_SPACE = "\u2581"
#: White space in the C++: isspace in the C locale, and the mark itself.
_BLANKS = f" \t\n\v\f\r{_SPACE}"
_WORDS = re.compile(f"[^{_BLANKS}]+")
#: str.lower has one rule that depends on context: a capital sigma at the end of a word.
_FINAL_SIGMA = r"\p{Cased}\p{Case_Ignorable}*\K\u03a3(?!\p{Case_Ignorable}*\p{Cased})"

_SPECIAL = ("<UNK>", "<PAD>", "<BOS>", "<EOS>")
_ROLES = ("unk_token", "pad_token", "bos_token", "eos_token")


class _Model(NamedTuple):
    """The content of a file.

    Attributes:
      characters: their ids.
      merges: pair of ids -> rank of the merge, and the id of the result.
      special: the ids of `_SPECIAL`.
      spelled: text of every other id.
    """

    characters: dict[str, int]
    merges: dict[tuple[int, int], tuple[int, int]]
    special: dict[str, int]
    spelled: dict[int, str]


class RuCLIPTokenizer(transformers.PythonBackend):
    """ruCLIP's tokens: lower case, <BOS> text <EOS>, padded with <PAD>.

    A token's name is its id, since two merges may spell the same text.
    """

    model_input_names: ClassVar = ["input_ids", "attention_mask"]
    vocab_files_names: ClassVar = {"vocab_file": "bpe.model"}

    def __init__(self, vocab_file: str | Path, **options):
        self.vocab_file = str(vocab_file)
        self._model = _read(Path(vocab_file))
        # Data sets repeat words.
        self._word = lru_cache(maxsize=1 << 16)(self._merge)
        super().__init__(**(dict(zip(_ROLES, _SPECIAL, strict=True)) | options))

    @property
    def vocab_size(self) -> int:
        """All tokens, the special ones included."""
        return len(self._model.spelled) + len(self._model.special)

    def get_vocab(self) -> dict[str, int]:
        """Token names -> ids."""
        return {str(index): index for index in self._model.spelled} | self._model.special

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """<BOS> tokens <EOS>."""
        if token_ids_1 is not None:
            raise ValueError("ruCLIP's tokenizer: expected one text a prompt, got two")
        return [self.bos_token_id, *token_ids_0, self.eos_token_id]

    def _tokenize(self, text: str, **options) -> list[str]:
        return [token for word in _WORDS.findall(text.lower()) for token in self._word(word)]

    def _convert_token_to_id(self, token: str) -> int:
        return self._model.special[token] if token in self._model.special else int(token)

    def _convert_id_to_token(self, index: int) -> str:
        names = {number: name for name, number in self._model.special.items()}
        return names.get(index, str(index))

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of the tokens."""
        special, spelled = self._model.special, self._model.spelled
        texts = (token if token in special else spelled[int(token)] for token in tokens)
        return "".join(texts).replace(_SPACE, " ").strip()

    def to_fast(self) -> transformers.PreTrainedTokenizerFast:
        """The same ids by the tokenizers library, for users without this package.

        Raises:
          WeightsError: two tokens have the same text; the library identifies tokens by text.
        """
        _, merges, special, spelled = self._model
        vocabulary = {text: index for index, text in spelled.items()} | special
        if len(vocabulary) < self.vocab_size:
            raise WeightsError(
                f"{self.vocab_file}: expected tokens of different texts, as the tokenizers "
                f"library needs them, got {self.vocab_size - len(vocabulary)} twice"
            )
        pairs = sorted(merges, key=merges.__getitem__)
        unknown, _, begin, end = _SPECIAL
        fast = Tokenizer(
            models.BPE(
                vocabulary,
                [(spelled[first], spelled[second]) for first, second in pairs],
                unk_token=unknown,
                fuse_unk=True,
            )
        )
        fast.normalizer = normalizers.Sequence(
            [normalizers.Replace(Regex(_FINAL_SIGMA), "\u03c2"), normalizers.Lowercase()]
        )
        fast.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(f"[{_BLANKS}]+"), "removed"),
                pre_tokenizers.Metaspace(_SPACE, prepend_scheme="always", split=False),
            ]
        )
        fast.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A {end}",
            special_tokens=[(name, special[name]) for name in (begin, end)],
        )
        fast.decoder = decoders.Metaspace(_SPACE, prepend_scheme="always")
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=fast,
            model_input_names=self.model_input_names,
            model_max_length=self.model_max_length,
            **dict(zip(_ROLES, _SPECIAL, strict=True)),
        )

    def _merge(self, word: str) -> tuple[str, ...]:
        """The tokens of a word: merges by rank, the leftmost first."""
        parts: list[int | None] = [self._model.characters[_SPACE]]
        for character in word:
            known = self._model.characters.get(character)
            if known is not None or parts[-1] is not None:
                parts.append(known)
        merges = self._model.merges
        while True:
            pairs = itertools.pairwise(parts)
            ranked = [(merges[pair], at) for at, pair in enumerate(pairs) if pair in merges]
            if not ranked:
                return tuple(_SPECIAL[0] if part is None else str(part) for part in parts)
            (_, merged), at = min(ranked)
            parts[at : at + 2] = [merged]

    def __getstate__(self):
        return {"vocab_file": self.vocab_file, "model_max_length": self.model_max_length}

    def __setstate__(self, state):
        self.__init__(**state)


def _read(file: Path) -> _Model:
    try:
        numbers = iter([int(number) for number in file.read_text("ascii").split()])
        characters, merges = next(numbers), next(numbers)
        ids = {chr(next(numbers)): next(numbers) for _ in range(characters)}
        pairs = {}
        for rank in range(merges):
            pair = next(numbers), next(numbers)
            pairs[pair] = rank, next(numbers)
        special = {name: next(numbers) for name in _SPECIAL}
        whole = next(numbers, None) is None and _SPACE in ids and min(special.values()) >= 0
        spelled = _spellings(ids, pairs)
    except (OSError, ValueError, OverflowError, LookupError, StopIteration) as error:
        raise WeightsError(f"{file}: not a model of YouTokenToMe ({error!r})") from error
    if not whole:
        raise WeightsError(
            f"{file}: expected a model of YouTokenToMe with a space and {', '.join(_SPECIAL)}"
        )
    return _Model(ids, pairs, special, spelled)


def _spellings(
    characters: dict[str, int], merges: dict[tuple[int, int], tuple[int, int]]
) -> dict[int, str]:
    spelled = {index: character for character, index in characters.items()}
    for (first, second), (_, merged) in sorted(merges.items(), key=lambda item: item[1]):
        spelled[merged] = spelled[first] + spelled[second]
    return spelled

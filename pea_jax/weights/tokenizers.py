"""Text into token ids of a fixed length, by the tokenizer that a model was trained with."""

import html
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import transformers
from jaxtyping import Int32

from pea_jax.weights.errors import WeightsError
from pea_jax.weights.youtokentome import RuCLIPTokenizer

_LOG = logging.getLogger(__name__)

#: The most cut texts that are logged, one line each. A training set may hold millions.
MAX_LOGGED = 100

# transformers marks a tokenizer without a length of its own by 1e30.
_NO_LENGTH = 10**6


Tokens = tuple[Int32[np.ndarray, "B L"], Int32[np.ndarray, "B L"]]


def open_clip_clean(text: str) -> str:
    """Cleans a text as open_clip does before any tokenizer (its `tokenizer.py`).

    Fixes broken encodings and typographic quotes, resolves HTML entities (twice, since captions
    from the web are often escaped twice), and collapses white space to single spaces.
    """
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


class AnyTokenizer:
    """Texts -> ids and mask [B, L], padded to L = `max_length` and cut there.

    Each text that is cut is logged once, with the words that the model won't see, up to
    `MAX_LOGGED` texts. A tokenizer can be pickled and called from several threads.

    Attributes:
      max_length: tokens per row, including the special ones.
    """

    def __init__(self, max_length: int):
        self.max_length = max_length
        self._logged: set[str] = set()

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """The ids and the mask (1 for tokens, 0 for padding) of `texts`, [B, max_length] each."""
        ids, mask = self.encode(texts)
        for text, full in zip(texts, mask.all(axis=1), strict=True):
            if full and text not in self._logged and len(self._logged) <= MAX_LOGGED:
                self._log(text, self.cut(text))
        return ids, mask

    def encode(self, texts: Sequence[str]) -> Tokens:
        """The same without logging."""
        raise NotImplementedError

    def cut(self, text: str) -> str:
        """The part of `text` that the model does not see; "" if it sees all of it."""
        raise NotImplementedError

    def _lengths(self) -> str:
        return str(self.max_length)

    def _log(self, text: str, lost: str) -> None:
        if not lost:
            return
        self._logged.add(text)
        if len(self._logged) > MAX_LOGGED:
            _LOG.warning("more than %d texts were cut; the others are not logged", MAX_LOGGED)
            return
        message = "%r is longer than %s tokens; the model does not see %r"
        _LOG.warning(message, text, self._lengths(), lost)


class Tokenizer(AnyTokenizer):
    """A tokenizer of transformers.

    Attributes:
      clean: applied to every text first; None leaves texts as they are.
    """

    def __init__(
        self, hf_tokenizer: Any, max_length: int, clean: Callable[[str], str] | None = None
    ):
        special = hf_tokenizer.num_special_tokens_to_add()
        if max_length <= special:
            raise ValueError(
                f"tokenizer: expected a max_length above its {special} special tokens, "
                f"got {max_length}"
            )
        if hf_tokenizer.pad_token_id is None:
            raise ValueError(f"{hf_tokenizer.name_or_path}: the tokenizer has no padding token")
        if hf_tokenizer.padding_side != "right" or hf_tokenizer.truncation_side != "right":
            raise ValueError(
                f"{hf_tokenizer.name_or_path}: expected padding and truncation on the right, got "
                f"{hf_tokenizer.padding_side} and {hf_tokenizer.truncation_side}"
            )
        super().__init__(max_length)
        self.clean = clean
        self._tokenizer = hf_tokenizer
        self._capacity = max_length - special
        # The length of a call is state of a fast tokenizer.
        self._lock = threading.Lock()

    @classmethod
    def from_folder(
        cls,
        folder: Path | str,
        max_length: int | None = None,
        *,
        kind: type | None = None,
        clean: Callable[[str], str] | None = None,
    ) -> "Tokenizer":
        """Reads a tokenizer's files.

        Args:
          folder: a tokenizer as transformers saves it, or as its authors publish it.
          max_length: None uses the tokenizer's own.
          kind: a tokenizer class of transformers; None uses the one that the folder names.
          clean: applied to every text first; a module-level function, so that it can be pickled.

        Raises:
          WeightsError: `folder` has no tokenizer, or one without a length where max_length is None.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise WeightsError(f"{folder}: no such folder of a tokenizer")
        try:
            reader = kind or transformers.AutoTokenizer
            tokenizer = reader.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, ImportError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise WeightsError(f"{folder}: cannot read a tokenizer ({reason})") from error
        if max_length is None:
            max_length = tokenizer.model_max_length
            if max_length > _NO_LENGTH:
                raise WeightsError(f"{folder}: its tokenizer has no length: give max_length")
        return cls(tokenizer, max_length, clean)

    def encode(self, texts: Sequence[str]) -> Tokens:
        """The same without logging."""
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"tokenizer: expected a sequence of texts, got {texts!r}")
        if not texts:
            empty = np.zeros((0, self.max_length), np.int32)
            return empty, empty.copy()
        with self._lock:
            rows = self._tokenizer(
                [self._cleaned(text) for text in texts],
                padding="max_length",
                truncation=True,
                max_length=self.max_length,
                return_attention_mask=True,
            )
        ids = np.asarray(rows["input_ids"], np.int32)
        return ids, np.asarray(rows["attention_mask"], np.int32)

    def save(self, folder: Path) -> str:
        """Writes this tokenizer for transformers, with `max_length` as its own length.

        Returns:
          The transformers class that loads the folder.

        Raises:
          WeightsError: as for `RuCLIPTokenizer.to_fast`.
        """
        if isinstance(self._tokenizer, RuCLIPTokenizer):
            tokenizer, name = self._tokenizer.to_fast(), "PreTrainedTokenizerFast"
        else:
            tokenizer, name = self._tokenizer, type(self._tokenizer).__name__
        with self._lock:
            own = tokenizer.model_max_length
            tokenizer.model_max_length = self.max_length
            tokenizer.save_pretrained(folder)
            tokenizer.model_max_length = own
        return name

    def cut(self, text: str) -> str:
        """The part of `text` beyond `max_length`; "" if it fits."""
        text = self._cleaned(text)
        with self._lock:
            fast = self._tokenizer.is_fast
            tokens = self._tokenizer(
                text, add_special_tokens=False, return_offsets_mapping=fast, verbose=False
            )
            ids = tokens["input_ids"]
            if len(ids) <= self._capacity:
                return ""
            if fast:
                return text[tokens["offset_mapping"][self._capacity][0] :].strip()
            return self._tokenizer.decode(ids[self._capacity :])

    def _cleaned(self, text: str) -> str:
        return text if self.clean is None else self.clean(text)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())


class BlankTokenizer(AnyTokenizer):
    """Stands in for a tokenizer whose files are missing: every text is all padding."""

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Zeros, [B, max_length] each."""
        blank = np.zeros((len(texts), self.max_length), np.int32)
        return blank, blank.copy()

    def cut(self, text: str) -> str:
        """No part of `text` is known to be cut, so ""."""
        del text
        return ""


class JoinedTokenizer(AnyTokenizer):
    """The tokenizers of several encoders: their ids and masks side by side on the length axis.

    Texts -> ids and mask [B, L1 + L2 + ...], the input of `models.text.towers.ConcatenatedTowers`.

    Attributes:
      parts: one per encoder.
    """

    def __init__(self, parts: Sequence[Tokenizer | BlankTokenizer]):
        super().__init__(sum(part.max_length for part in parts))
        self.parts = tuple(parts)

    def encode(self, texts: Sequence[str]) -> Tokens:
        """The same without logging."""
        ids, masks = zip(*(part.encode(texts) for part in self.parts), strict=True)
        return np.concatenate(ids, axis=1), np.concatenate(masks, axis=1)

    def cut(self, text: str) -> str:
        """The part of `text` that no encoder sees; "" if one of them sees all of it."""
        return min((part.cut(text) for part in self.parts), key=len)

    def _lengths(self) -> str:
        return " and ".join(str(part.max_length) for part in self.parts)


def join(tokenizers: Sequence[Tokenizer | BlankTokenizer]) -> AnyTokenizer:
    """Joins several tokenizers; a single one is returned as it is."""
    return tokenizers[0] if len(tokenizers) == 1 else JoinedTokenizer(tokenizers)

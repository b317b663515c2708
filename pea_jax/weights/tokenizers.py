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

_LOG = logging.getLogger(__name__)

#: So many texts that were too long are told of, one line each. A training set may hold millions.
MAX_TOLD = 100

# transformers' way of saying that a tokenizer has no length of its own is 1e30.
_NO_LENGTH = 10**6


def open_clip_clean(text: str) -> str:
    """What open_clip does to a text before any tokenizer sees it (its `tokenizer.py`).

    Broken encodings and typographic quotes are mended, HTML entities resolved (twice, as captions
    from the web are escaped twice), white space made single spaces.
    """
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


class _CutLog:
    """Tells of each text that was cut, once, up to `MAX_TOLD` of them."""

    def __init__(self):
        self._told: set[str] = set()

    def tell(self, text: str, length: str, cut: Callable[[str], str]) -> None:
        """Logs what of `text` is beyond `length`, if anything is."""
        if text in self._told or len(self._told) > MAX_TOLD or not (lost := cut(text)):
            return
        self._told.add(text)
        if len(self._told) > MAX_TOLD:
            _LOG.warning("more than %d texts were cut; the others are not told of", MAX_TOLD)
            return
        _LOG.warning("%r is longer than %s tokens; the model does not see %r", text, length, lost)


class Tokenizer:
    """Texts -> ids and mask [B, L], padded to L = `max_length` and cut there.

    A text that is cut is told of in the log once, with the words that the model won't see. It may
    be pickled, and called from several threads.

    Attributes:
      max_length: tokens of every row, the special ones included.
      clean: applied to every text first; None for nothing.
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
        self.max_length = max_length
        self.clean = clean
        self._tokenizer = hf_tokenizer
        self._capacity = max_length - special
        self._log = _CutLog()
        # A fast tokenizer keeps the length of the last call as its state.
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
        """The tokenizer whose files lie in `folder`.

        Args:
          folder: of a tokenizer as transformers saves it, or as its authors published it.
          max_length: None takes what the tokenizer says of itself.
          kind: its class, a tokenizer of transformers; None takes what the folder says.
          clean: applied to every text first; a function of a module, for it is pickled.

        Raises:
          WeightsError: `folder` has no tokenizer, or one that says no length when asked for it.
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

    def __call__(
        self, texts: Sequence[str]
    ) -> tuple[Int32[np.ndarray, "B L"], Int32[np.ndarray, "B L"]]:
        """The ids and the mask (1 for tokens, 0 for padding) of `texts`, [B, max_length] each."""
        ids, mask = self.encode(texts)
        for text, full in zip(texts, mask.all(axis=1), strict=True):
            if full:
                self._log.tell(text, str(self.max_length), self.cut)
        return ids, mask

    def encode(
        self, texts: Sequence[str]
    ) -> tuple[Int32[np.ndarray, "B L"], Int32[np.ndarray, "B L"]]:
        """The same without a word of what is cut."""
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
        """Writes the files of which transformers makes this tokenizer, cut at `max_length`.

        Returns:
          Its class there.

        Raises:
          WeightsError: it is none of transformers'.
        """
        kind = type(self._tokenizer).__name__
        if not hasattr(transformers, kind):
            raise WeightsError(f"a {kind} can't be written for transformers, which has none")
        with self._lock:
            own = self._tokenizer.model_max_length
            self._tokenizer.model_max_length = self.max_length
            self._tokenizer.save_pretrained(folder)
            self._tokenizer.model_max_length = own
        return kind

    def cut(self, text: str) -> str:
        """What of `text` is beyond `max_length`; "" if nothing is."""
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


class BlankTokenizer:
    """The length of a tokenizer whose files aren't here: every text is padding alone.

    Attributes:
      max_length: tokens of every row.
    """

    def __init__(self, max_length: int):
        self.max_length = max_length

    def __call__(
        self, texts: Sequence[str]
    ) -> tuple[Int32[np.ndarray, "B L"], Int32[np.ndarray, "B L"]]:
        """Zeros, [B, max_length] each."""
        return self.encode(texts)

    def encode(
        self, texts: Sequence[str]
    ) -> tuple[Int32[np.ndarray, "B L"], Int32[np.ndarray, "B L"]]:
        """The same."""
        blank = np.zeros((len(texts), self.max_length), np.int32)
        return blank, blank.copy()

    def cut(self, text: str) -> str:
        """Nothing is known to be cut."""
        del text
        return ""


class JoinedTokenizer:
    """The tokenizers of several encoders: their ids and masks side by side on the length axis.

    Texts -> ids and mask [B, L1 + L2 + ...], which `models.text.ConcatenatedTowers` takes apart
    again. It may be pickled, and called from several threads.

    Attributes:
      parts: one an encoder.
      max_length: columns of ids and mask, the sum of the parts'.
    """

    def __init__(self, parts: Sequence[Tokenizer | BlankTokenizer]):
        self.parts = tuple(parts)
        self.max_length = sum(part.max_length for part in self.parts)
        self._log = _CutLog()

    def __call__(
        self, texts: Sequence[str]
    ) -> tuple[Int32[np.ndarray, "B L"], Int32[np.ndarray, "B L"]]:
        """The ids and the mask (1 for tokens, 0 for padding) of `texts`, [B, max_length] each."""
        ids, masks = zip(*(part.encode(texts) for part in self.parts), strict=True)
        lengths = " and ".join(str(part.max_length) for part in self.parts)
        full = np.all([mask.all(axis=1) for mask in masks], axis=0)
        for text, cut in zip(texts, full, strict=True):
            if cut:
                self._log.tell(text, lengths, self.cut)
        return np.concatenate(ids, axis=1), np.concatenate(masks, axis=1)

    def cut(self, text: str) -> str:
        """What of `text` none of the encoders sees; "" if one of them sees it all."""
        return min((part.cut(text) for part in self.parts), key=len)


AnyTokenizer = Tokenizer | BlankTokenizer | JoinedTokenizer


def join(tokenizers: Sequence[Tokenizer | BlankTokenizer]) -> AnyTokenizer:
    """One tokenizer of several; the only one as it is."""
    return tokenizers[0] if len(tokenizers) == 1 else JoinedTokenizer(tokenizers)

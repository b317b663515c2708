"""Text into token ids of a fixed length, by the tokenizer that a model was trained with."""

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from jaxtyping import Int32

from pea_jax.weights.load import WeightsError

_LOG = logging.getLogger(__name__)

#: So many texts that were too long are told of, one line each. A training set may hold millions.
MAX_TOLD = 100

# transformers' way of saying that a tokenizer has no length of its own is 1e30.
_NO_LENGTH = 10**6


class Tokenizer:
    """Texts -> ids and mask [B, L], padded to L = `max_length` and cut there.

    A text that is cut is told of in the log once, with the words that the model won't see. It may
    be pickled, and called from several threads.

    Attributes:
      max_length: tokens of every row, the special ones included.
    """

    def __init__(self, hf_tokenizer: Any, max_length: int):
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
        self._tokenizer = hf_tokenizer
        self._capacity = max_length - special
        self._told: set[str] = set()
        # A fast tokenizer keeps the length of the last call as its state.
        self._lock = threading.Lock()

    @classmethod
    def from_folder(cls, folder: Path | str, max_length: int | None = None) -> "Tokenizer":
        """The tokenizer whose files lie in `folder`.

        Args:
          folder: of a tokenizer as transformers saves it.
          max_length: None takes what the tokenizer says of itself.

        Raises:
          WeightsError: `folder` has no tokenizer, or one that says no length when asked for it.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise WeightsError(f"{folder}: no such folder of a tokenizer")
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, ImportError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise WeightsError(f"{folder}: cannot read a tokenizer ({reason})") from error
        if max_length is None:
            max_length = tokenizer.model_max_length
            if max_length > _NO_LENGTH:
                raise WeightsError(f"{folder}: its tokenizer has no length: give max_length")
        return cls(tokenizer, max_length)

    def __call__(
        self, texts: Sequence[str]
    ) -> tuple[Int32[np.ndarray, "B L"], Int32[np.ndarray, "B L"]]:
        """The ids and the mask (1 for tokens, 0 for padding) of `texts`, [B, max_length] each."""
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"tokenizer: expected a sequence of texts, got {texts!r}")
        if not texts:
            empty = np.zeros((0, self.max_length), np.int32)
            return empty, empty.copy()
        with self._lock:
            rows = self._tokenizer(
                list(texts),
                padding="max_length",
                truncation=True,
                max_length=self.max_length,
                return_attention_mask=True,
            )
        ids = np.asarray(rows["input_ids"], np.int32)
        mask = np.asarray(rows["attention_mask"], np.int32)
        for text, full in zip(texts, mask.all(axis=1), strict=True):
            if full:
                self._tell(text)
        return ids, mask

    def cut(self, text: str) -> str:
        """What of `text` is beyond `max_length`; "" if nothing is."""
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

    def _tell(self, text: str) -> None:
        if text in self._told or len(self._told) > MAX_TOLD or not (lost := self.cut(text)):
            return
        self._told.add(text)
        if len(self._told) > MAX_TOLD:
            _LOG.warning("more than %d texts were cut; the others are not told of", MAX_TOLD)
            return
        _LOG.warning(
            "%r is longer than %d tokens; the model does not see %r", text, self.max_length, lost
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

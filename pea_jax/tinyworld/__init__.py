"""The embedded default: a world of 64x64 scenes, small enough for training on two CPU cores.

It replaces data and models that cannot be shipped (LAION, Stable Diffusion, a multilingual text
encoder) and uses the same code as they do. Results are measurable: an oracle reads every attribute
of a scene from its pixels.
"""

from pathlib import Path

_HERE = Path(__file__).parent

#: Shipped checkpoints: ``sd`` (a diffusers folder) and ``xlm-roberta`` (a transformers folder).
CHECKPOINTS: Path = _HERE / "checkpoints"

#: A font with every glyph of ASCII and of the tinyworld captions in all six languages.
FONT: Path = _HERE / "font.otf"

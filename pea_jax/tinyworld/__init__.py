"""The embedded default: a world of 64x64 scenes small enough to train whole on two CPU cores.

It stands in for what cannot be shipped (LAION, Stable Diffusion, a multilingual text encoder) and
goes through exactly the code that those go through. It is exact enough to measure: an oracle reads
every attribute of a scene back from its pixels.
"""

from pathlib import Path

_HERE = Path(__file__).parent

#: Shipped checkpoints: ``sd`` (a diffusers folder) and ``xlm-roberta`` (a transformers folder).
CHECKPOINTS: Path = _HERE / "checkpoints"

#: A font with every glyph of ASCII and of the tinyworld captions in all six languages.
FONT: Path = _HERE / "font.otf"

"""The PEA adapter in PyTorch: an MLP between language encoders and a frozen Stable Diffusion UNet.

PEA-Diffusion, https://arxiv.org/abs/2311.17086. diffusers loads this file as a custom component.
"""

import html
import importlib
import itertools
import json
from pathlib import Path
from typing import ClassVar

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import is_ftfy_available, logging

logger = logging.get_logger(__name__)


def _clean(text: str) -> str:
    if is_ftfy_available():
        text = importlib.import_module("ftfy").fix_text(text)
    return " ".join(html.unescape(html.unescape(text)).split())


class PEAAdapter(ModelMixin, ConfigMixin):
    """LayerNorm, then linear layers with exact GELUs between them.

    For SDXL the mean of their output over all tokens is the pooled vector, and one more linear
    layer after a GELU gives the tokens. The keys are those of the authors' files: projector.N, fc;
    or, with biases, fc1, fc2, ...

    Args:
        input_width: width of the language encoder's last hidden state.
        hidden_width: width between the linear layers.
        output_width: width that the UNet's cross-attention takes.
        projector_layers: number of linear layers, the one behind the pooled vector left out.
        pooled_width: width of the pooled vector; None for Stable Diffusion 1.x and 2.x.
        bias: whether the projector's linear layers have biases.
        clean_text: whether prompts are cleaned as open_clip does it: broken encodings mended (where
            ftfy is installed), HTML entities resolved, white space made single spaces.
    """

    code: ClassVar[str] = Path(__file__).read_text("utf-8")

    @register_to_config
    def __init__(
        self,
        input_width: int,
        hidden_width: int,
        output_width: int,
        projector_layers: int = 3,
        pooled_width: int | None = None,
        bias: bool = False,
        clean_text: bool = False,
    ):
        super().__init__()
        last = output_width if pooled_width is None else pooled_width
        widths = [input_width] + [hidden_width] * (projector_layers - 1) + [last]
        layers: list[torch.nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [torch.nn.GELU(), torch.nn.Linear(fan_in, fan_out, bias=bias)]
        self.layernorm = torch.nn.LayerNorm(input_width, eps=1e-5)
        if bias:
            for number, layer in enumerate(layers[1::2], 1):
                self.add_module(f"fc{number}", layer)
        else:
            self.projector = torch.nn.Sequential(*layers[1:])
        self.output = None
        if pooled_width is not None:
            self.output = f"fc{projector_layers + 1}" if bias else "fc"
            self.add_module(self.output, torch.nn.Linear(pooled_width, output_width))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, L, input_width] -> tokens [B, L, output_width], and the pooled vector [B, P]."""
        hidden = self.layernorm(hidden_states)
        if self.config.bias:
            for number in range(1, self.config.projector_layers + 1):
                hidden = torch.nn.functional.gelu(hidden) if number > 1 else hidden
                hidden = self.get_submodule(f"fc{number}")(hidden)
        else:
            hidden = self.projector(hidden)
        if self.output is None:
            return hidden, None
        pooled = hidden.mean(dim=1)
        return self.get_submodule(self.output)(torch.nn.functional.gelu(hidden)), pooled

    def encode(
        self, prompts: list[str], pipeline, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Prompts -> what the UNet takes, by the language encoders of a pipeline.

        The tokens of several encoders lie side by side on the feature axis, the shorter ones
        padded with zeros.
        """
        if self.config.clean_text:
            prompts = [_clean(prompt) for prompt in prompts]
        states = []
        for name in sorted(name for name in pipeline.components if "language_encoder" in name):
            encoder = getattr(pipeline, name)
            tokenizer = getattr(pipeline, name.replace("encoder", "tokenizer"))
            limit = tokenizer.model_max_length
            tokens = tokenizer(
                prompts,
                padding="max_length",
                max_length=limit,
                truncation=True,
                return_tensors="pt",
            )
            for prompt in prompts:
                ids = tokenizer(prompt, verbose=False).input_ids
                if len(ids) > limit:
                    cut = tokenizer.decode(ids[limit - 1 : -1])
                    logger.warning(f"a prompt of {len(ids)} tokens, {limit} fit, cut off: {cut!r}")
            mask = tokens.attention_mask.to(device)
            states.append(encoder(tokens.input_ids.to(device), attention_mask=mask)[0])
        longest = max(state.shape[1] for state in states)
        padded = [
            torch.nn.functional.pad(state, (0, 0, 0, longest - state.shape[1])) for state in states
        ]
        return self(torch.cat(padded, dim=-1).to(self.dtype))

    def encode_negative(
        self, negative: str | list[str] | None, count: int, pipeline, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The negative prompt, "" unless given, for each of `count` prompts."""
        negative = negative or ""
        if isinstance(negative, str):
            tokens, pooled = self.encode([negative], pipeline, device)
            tokens = tokens.expand(count, -1, -1)
            return tokens, None if pooled is None else pooled.expand(count, -1)
        if len(negative) != count:
            raise ValueError(
                f"expected one negative prompt or {count}, one a prompt; got {len(negative)}"
            )
        return self.encode(list(negative), pipeline, device)

    def save_code(self, pipeline, folder: str | Path) -> None:
        """Beside a pipeline's model_index.json, the code that it names: the folder is whole."""
        index_file = Path(folder) / pipeline.config_name
        index = json.loads(index_file.read_text())
        index["_class_name"] = ["pipeline", type(pipeline).__name__]
        index["adapter"] = ["pea_adapter", type(self).__name__]
        index_file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        for value, name in ((pipeline, "pipeline.py"), (self, "adapter/pea_adapter.py")):
            (Path(folder) / name).parent.mkdir(exist_ok=True)
            (Path(folder) / name).write_text(value.code, "utf-8")

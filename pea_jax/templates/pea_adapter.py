"""The PEA adapter in PyTorch: an MLP between a language encoder and a frozen Stable Diffusion UNet.

PEA-Diffusion, https://arxiv.org/abs/2311.17086. diffusers loads this file as a custom component.
"""

import itertools

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config


class PEAAdapter(ModelMixin, ConfigMixin):
    """LayerNorm, then linear layers without biases with exact GELUs between them.

    Args:
        input_width: width of the language encoder's last hidden state.
        hidden_width: width between the linear layers.
        output_width: width that the UNet's cross-attention takes.
        projector_layers: number of linear layers.
    """

    @register_to_config
    def __init__(
        self,
        input_width: int,
        hidden_width: int,
        output_width: int,
        projector_layers: int = 3,
    ):
        super().__init__()
        widths = [input_width] + [hidden_width] * (projector_layers - 1) + [output_width]
        layers: list[torch.nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [torch.nn.GELU(), torch.nn.Linear(fan_in, fan_out, bias=False)]
        self.layernorm = torch.nn.LayerNorm(input_width, eps=1e-5)
        self.projector = torch.nn.Sequential(*layers[1:])

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, L, input_width] -> tokens for the UNet [B, L, output_width]."""
        return self.projector(self.layernorm(hidden_states))

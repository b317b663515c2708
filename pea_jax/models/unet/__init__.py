"""The UNet of Stable Diffusion and SDXL."""

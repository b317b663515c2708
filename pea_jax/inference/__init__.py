"""Prompts in, images out.

pipeline  the public Python API: loads models, makes batches, fetches images
settings  how to sample
denoiser  what a solver calls: the UNet, its conditioning, guidance and plug-ins
program   the compiled sampler
"""

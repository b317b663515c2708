"""Diffusion as pure functions on arrays: noise schedules, solvers, guidance.

Nothing here knows a network: a solver is given a function from latents and a timestep to a
prediction.
"""

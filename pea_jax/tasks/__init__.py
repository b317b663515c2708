"""The commands of `pea-jax`, one a file; none imports another."""

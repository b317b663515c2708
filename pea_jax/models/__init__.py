"""Networks as Flax NNX modules: arrays in, arrays out; no files, no task configs, no tokenizers.

Attribute paths equal the keys of the Hugging Face checkpoint that the network is loaded from, so
`pea_jax.weights` needs one leaf rule and no map per model. Images are NHWC. Norms and softmax
are computed in float32 whatever the compute dtype.
"""

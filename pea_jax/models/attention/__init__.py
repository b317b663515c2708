"""Attention on TPUs, GPUs and CPUs behind one function, `core.dot_product_attention`."""

"""Text towers: token ids in, hidden states out."""

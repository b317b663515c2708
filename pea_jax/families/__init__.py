"""All that differs between families of base models, in one object each."""

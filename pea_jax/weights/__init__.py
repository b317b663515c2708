"""The only place that knows a Hugging Face file: where it is, its names, its layout."""

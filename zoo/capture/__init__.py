"""Frontends that turn a model into a graph. `torch_export` needs torch; `huggingface` needs transformers too."""

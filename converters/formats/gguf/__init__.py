"""GGUF, llama.cpp's format: header, quantised blocks, and the tokenizers that it holds."""

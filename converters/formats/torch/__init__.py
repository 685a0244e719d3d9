"""PyTorch's own files, read and written without torch."""

"""Hugging Face's layout, read and written without transformers or PyTorch."""

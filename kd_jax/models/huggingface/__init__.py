"""Hugging Face's layout, both ways; nothing of transformers or PyTorch is used."""

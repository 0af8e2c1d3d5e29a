"""Folders written whole or not at all, and proof of what is in them."""

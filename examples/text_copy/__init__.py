"""Cohorts of LoRA adapters of a tiny language model, and the truth about each of them."""

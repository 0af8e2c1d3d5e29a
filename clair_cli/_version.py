"""The version of clair, where every module may read it without a cycle."""

__version__ = "0.1.0"

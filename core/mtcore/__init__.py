"""mtcore: one model for many text tasks, from plugins to verdicts."""

__version__ = "0.1.0"

API = 1
"""The version of the plugin contracts in `mtcore.contracts`; a plugin may state the one it needs as `mtcore_api`."""

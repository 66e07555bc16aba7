"""Checkpoints on disk: find, download, describe, load them, and know whether they fit."""

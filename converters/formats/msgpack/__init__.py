"""Flax's MessagePack files."""

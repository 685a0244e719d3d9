"""Processes that read what may be hostile, and what confines them.

The `*_child` scripts are run by path, without this package: they import `confined`, which stands beside them, and
nothing else of ours. A new one adds a script here and starts it through `reader`.
"""

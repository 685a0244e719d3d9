"""Checkpoint formats: how bytes become tensors by name, and back.

May import `converters.checkpoint` and its neighbours, never a dialect: names stay as the file has them. A new format is
a module with SUFFIXES, recognises(head) and open_file(path), and `write` where it can be written, named in
`converters.FORMATS`; one of several files has a folder.
"""

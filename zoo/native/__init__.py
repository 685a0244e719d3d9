"""The native engine: kernels in C++ behind a C ABI (zoo_native.h), and what binds them to NumPy.

Importing this package loads no library; `zoo.native.library` does.
"""

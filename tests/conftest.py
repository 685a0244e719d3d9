"""What every test process sets up before a framework is imported, and what several test files share."""

from __future__ import annotations

import os
import tempfile

# Read when a framework is imported; the processes that tests start inherit them.
for _name, _value in {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
    "KERAS_BACKEND": "tensorflow",
    "HF_HUB_OFFLINE": "1",
    "ZOO_CACHE": tempfile.mkdtemp(prefix="zoo-cache-"),
}.items():
    os.environ.setdefault(_name, _value)

"""Keeps freed memory in the process, because on a CPU allocating the activations of every step anew takes long."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of glibc's mallopt, from malloc.h
MALLOC_VARIABLES = (
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
)
"""environment variables of glibc that set when memory is returned to the system"""


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory for later allocations of this process, instead of returning it to the system.

    glibc returns large blocks, such as the activations of a step, when they are freed. The next step requests them
    again, and the kernel clears every page. A training step on a CPU takes up to twice as long. With this setting the
    process keeps the memory of its largest step until it ends, and its peak can be about a fifth higher.

    The command `lightning-recall` and the benchmarks that train call this function. Importing the package does not,
    because the setting holds for the whole process. Call it at the start of your own training script. Processes forked
    afterwards, such as the workers of a DataLoader on Linux, inherit the setting.

    Returns:
        Whether the setting was made. It is not made if the process uses another allocator than that of glibc (macOS,
        Windows, musl, jemalloc or tcmalloc in LD_PRELOAD), or if the user chose own settings in the environment:
        MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_, MALLOC_TOP_PAD_, MALLOC_MMAP_MAX_, or `glibc.malloc` in
        GLIBC_TUNABLES.
    """
    if any(name in os.environ for name in MALLOC_VARIABLES) or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    if not allocates_with_glibc():
        return False
    glibc = ctypes.CDLL(None)
    # not M_MMAP_THRESHOLD: older glibc rejects values above 32 MiB
    return bool(glibc.mallopt(M_MMAP_MAX, 0)) and bool(glibc.mallopt(M_TRIM_THRESHOLD, -1))


def allocates_with_glibc() -> bool:
    """Whether `malloc` of this process is that of glibc, and not that of another C library or a preloaded allocator."""
    if sys.platform != "linux":
        return False
    process = ctypes.CDLL(None)
    if not hasattr(process, "gnu_get_libc_version"):
        return False
    glibc = ctypes.CDLL("libc.so.6")
    addresses = [ctypes.cast(library.malloc, ctypes.c_void_p).value for library in (process, glibc)]
    return addresses[0] == addresses[1]

"""How a process keeps its memory."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_KEPT_BYTES = 16 * 1024**2
_MAPPED_BYTES = 1024**2


def keep_freed_memory() -> None:
    """Let glibc's allocator keep up to 16 MiB of free memory; do nothing to another one.

    By default it gives a buffer of 256 KiB back as soon as that is freed. The kernel then clears
    each page of the next buffer: a third of the time to append a record, as measured.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES)

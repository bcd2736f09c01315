"""One decorator for every compiled kernel.

numba's ``cache=True`` raises at import where no folder is writable, and ``parallel=True`` aborts a process that forks
later: kernels here release the GIL (use threads) and are cached on disk where that is possible.
"""

import warnings
from collections.abc import Callable
from typing import TypeVar, cast, no_type_check

import numba

Function = TypeVar("Function", bound=Callable[..., object])

_warned = False


def kernel(function: Function) -> Function:
    """Compile a function of arrays and numbers by numba in nopython mode, without the GIL.

    The compiled code is cached beside the file or in ``NUMBA_CACHE_DIR``. Without a writable folder it is compiled
    anew in every process, which is said once. Marked ``no_type_check`` because runtime type checkers cannot wrap it.
    """
    global _warned
    plain = no_type_check(function)
    try:
        return cast(Function, numba.njit(cache=True, nogil=True)(plain))
    except RuntimeError:
        if not _warned:
            warnings.warn(
                "numba found no writable folder for its cache: kernels compile anew in every process "
                "(set NUMBA_CACHE_DIR to a writable folder)",
                stacklevel=2,
            )
            _warned = True
        return cast(Function, numba.njit(nogil=True)(plain))

"""Python's collector of cycles, in processes that make many records and few cycles."""

import gc

ALLOCATIONS = 20_000  # objects more than before, then the collector looks for cycles


def relax() -> None:
    """Look for cycles less often, and never among what is there already.

    By default 700 new objects are enough for a look, and thousands of records that are parsed and
    passed on take a third longer. For the main function of a process, once all is loaded.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(ALLOCATIONS, 10, 10)

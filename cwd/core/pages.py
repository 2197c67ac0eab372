"""A device's free pages as a stack of page numbers: what the worker's pool hands out, one owner per page.

The pool is an int64 array of 1 + 2 * n_pages words: how many are free; the free pages, last in first out; then one
word per page, 1 while it is free. Which model owns a page is for the caller to know; that no page is given twice and
none is given back twice is kept here.
"""

from __future__ import annotations

from cwd.jit import lean_kernel


@lean_kernel
def pages_words(n_pages):
    """Length of the array for a pool of `n_pages`."""
    return 1 + 2 * n_pages


@lean_kernel
def pages_count(pool):
    """How many pages the pool has in all."""
    return (len(pool) - 1) // 2


@lean_kernel
def pages_init(pool):
    """Make all pages free; page 0 is handed out first."""
    n = pages_count(pool)
    pool[0] = n
    for i in range(n):
        pool[1 + i] = n - 1 - i
        pool[1 + n + i] = 1


@lean_kernel
def pages_alloc(pool, out, count):
    """Take `count` pages and write their numbers to out[:count]. Returns count, or 0 and takes none if too few are free."""
    free = pool[0]
    n = pages_count(pool)
    if count > free or count > len(out):
        return 0
    for i in range(count):
        page = pool[free - i]
        out[i] = page
        pool[1 + n + page] = 0
    pool[0] = free - count
    return count


@lean_kernel
def pages_free(pool, pages, count):
    """Give pages[:count] back. Returns 0; or 1, and takes none back, if one of them is free or not a page."""
    n = pages_count(pool)
    for i in range(count):
        page = pages[i]
        if page < 0 or page >= n or pool[1 + n + page] == 1:
            for j in range(i):
                pool[1 + n + pages[j]] = 0
            return 1
        # marked at once, so that a page named twice is noticed
        pool[1 + n + page] = 1
    for i in range(count):
        pool[1 + pool[0] + i] = pages[i]
    pool[0] += count
    return 0


@lean_kernel
def pages_check(pool):
    """0 if the stack holds exactly the pages marked free, each once; else 1."""
    n = pages_count(pool)
    if pool[0] < 0 or pool[0] > n:
        return 1
    marked = 0
    for page in range(n):
        marked += pool[1 + n + page]
    if marked != pool[0]:
        return 1
    for i in range(pool[0]):
        page = pool[1 + i]
        if page < 0 or page >= n or pool[1 + n + page] != 1:
            return 1
    return 0

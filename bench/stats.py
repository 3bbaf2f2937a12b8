# SPDX-License-Identifier: MIT
"""stats.py: medians and their intervals. What two contenders did in one round is compared in that round
alone, so a machine that is busy for a while disturbs both; the median over the rounds is what counts."""
from math import comb
from statistics import median


def interval(values):
    """An interval that has the true median with 95 % probability or more, whatever the distribution: the
    k-th smallest to the k-th largest value. With fewer than 6 values that is not to be had, and it is
    all of them."""
    ordered, n = sorted(values), len(values)
    k = 0
    while k + 1 <= (n - 1) // 2 and 2 * sum(comb(n, i) for i in range(k + 1 + 1)) / 2**n <= 0.05:
        k += 1
    return ordered[k], ordered[n - 1 - k]


def summary(values):
    low, high = interval(values)
    return {"median": median(values), "low": low, "high": high, "rounds": len(values)}


def ratios(ours, theirs, less_is_better=False):
    pairs = [(b, a) if less_is_better else (a, b) for a, b in zip(ours, theirs) if a and b]
    return [a / b for a, b in pairs]

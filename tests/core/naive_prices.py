"""The price, the floor and the shortlist, slow and obvious, and what cwd runs next with them."""

from __future__ import annotations

from fractions import Fraction

import naive_policies as naive


def next_to_run(batches, start):
    """Of [(latest start, duration, share of it here, rows)] the index of the one that is next; None if there is none.

    By latest start, ties in the order given; when one would start too late, the least dense up to it is taken out.
    """
    order = sorted(range(len(batches)), key=lambda i: (batches[i][0], i))
    kept = []
    for i in order:
        kept.append(i)
        if start + sum(batches[k][2] for k in kept[:-1]) > batches[i][0]:
            least = min(Fraction(batches[k][3], batches[k][1]) for k in kept)
            # of equals the first goes, but the one that did not fit if another GPU has it too
            equal = [k for k in kept if Fraction(batches[k][3], batches[k][1]) == least]
            elsewhere = batches[i][2] < batches[i][1]
            kept.remove(i if i in equal and elsewhere else equal[0])
    return kept[0] if kept else None


def offer(queue, start, took, price):
    """A model's densest batch; where a smaller one is worth the price, each head passed over costs two prices, unless the
    larger one would be late for the next in the queue if it ran after the smaller."""
    chosen = None
    for size, left in naive.suffixes(queue, start, took):
        rows = len(left[:size])
        if chosen is not None:
            old_size, old_left = chosen
            old_rows = len(old_left[:old_size])
            cost = took[size]
            behind = old_left[old_rows:]
            in_time = not behind or start + took[old_size] + took[size] <= behind[0][0]
            if took[old_size] <= old_rows * price and in_time:
                cost += 2 * price * (len(old_left) - len(left))
            if Fraction(rows, cost) < Fraction(old_rows, took[old_size]):
                if size >= len(left):
                    break
                continue
        chosen = (size, left)
        if size >= len(left):
            break
    return chosen


def grows(size, left, start, took, gap, guard, patient):
    """Whether a denser batch would fill in time, and the first request has waited for less than half of it or is patient."""
    rows, until = len(left[:size]), 0
    for larger in sorted(took):
        if larger > rows:
            latest = left[0][0] - guard - took[larger]
            if start + gap * (larger - rows) > latest:
                break
            if Fraction(larger, took[larger]) > Fraction(rows, took[size]):
                until = latest
    came = left[0][1]
    return until > start if patient else came + (until - came) // 2 > start


def priced(queues, start, took, price, gaps, guard, mood):
    """cwd with no model owed anything: {the batch that it may run}; empty: none.

    `mood`: "eager" with time to spare, "busy" with little, "full" with none, "short" where somebody was lost.
    """
    listed, rest = [], []
    for model in sorted((m for m in queues if queues[m]), key=lambda m: (queues[m][0][0], m)):
        chosen = offer(queues[model], start, took, price)
        if chosen is None:
            continue
        size, left = chosen
        rows, waits = len(left[:size]), grows(size, left, start, took, gaps[model], guard, mood in ("full", "short"))
        entry = (Fraction(rows, took[size]), naive.batch(model, size, left))
        if mood == "eager" or (not waits and (mood != "short" or took[size] <= rows * price)):
            listed.append(((left[0][0] - took[size], took[size], took[size], rows), entry[1]))
        elif not waits or mood == "busy":
            rest.append(entry)
    i = next_to_run([batch for batch, _ in listed], start)
    if i is not None:
        return {listed[i][1]}
    return naive.best(rest)


def price_after(price, rows, batch_ns, idle_ns, dearer, doubling, longest, least_bits):
    """One step of the quantile, in exact arithmetic but for the roundings that are stated."""
    spent, idle = min(batch_ns, longest), min(idle_ns, longest)
    up = (spent if Fraction(batch_ns, rows) > price else 0) + (idle if Fraction(2 * batch_ns, rows) > price else 0)
    down = 0 if Fraction(batch_ns, rows) > price else spent
    step = (up * (dearer - 1) - down) // dearer
    return max(price + (price // 2 ** least_bits) * step // (doubling // 2 ** least_bits), 2 ** least_bits)


def smoothed(values, parts=32):
    """Where a whole number ends that goes a part of the way to each value, from 0, rounded down."""
    now = 0
    for value in values:
        now += (value - now) // parts
    return now


def company(rows, size, took, each, gaps, lost, came, latest):
    """Until when a batch of so many rows waits for one more; None: not at all. `gaps`: (share of arrivals that came soon,
    mean wait for the next); `lost`: share of requests; `latest`: latest start by size."""
    larger = min((b for b in took if b > rows), default=None)
    if larger is None or lost <= Fraction(1, 32):
        return None
    worth = each - (took[larger] - took[size]) // (larger - rows)
    soon, waited = gaps
    return min(came + worth, latest[larger]) if soon * worth > waited else None

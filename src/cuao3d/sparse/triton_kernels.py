"""The two Triton kernels of sparse convolution; this module needs triton, so it is imported where they are called."""

import inspect
from typing import Any

import triton
import triton.language as tl


def _sum_over_positions(  # type: ignore[no-untyped-def]
    x,
    kernel,
    out,
    row_of_slot,
    inputs,
    seen,
    seen_before_tile,
    num_slots,
    NUM_IN: tl.constexpr,
    NUM_OUT: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_IN: tl.constexpr,
    TILE_OUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write one tile: out[row] = sum of x[input] @ kernel[position], over the positions that any row of it sees."""
    num_tiles_out = tl.cdiv(NUM_OUT, TILE_OUT)
    tile = tl.program_id(0) // num_tiles_out
    columns = (tl.program_id(0) % num_tiles_out) * TILE_OUT + tl.arange(0, TILE_OUT)
    slots = tile * TILE_ROWS + tl.arange(0, TILE_ROWS)
    total = tl.zeros((TILE_ROWS, TILE_OUT), dtype=tl.float32)
    for place in range(tl.load(seen_before_tile + tile), tl.load(seen_before_tile + tile + 1)):
        position = tl.load(seen + place).to(tl.int64)
        rows = tl.load(inputs + position * num_slots + slots).to(tl.int64)
        for first in range(0, NUM_IN, TILE_IN):
            channels = first + tl.arange(0, TILE_IN)
            a = tl.load(
                x + rows[:, None] * NUM_IN + channels[None, :],
                mask=(rows >= 0)[:, None] & (channels < NUM_IN)[None, :],
                other=0.0,
            )
            b = tl.load(
                kernel + (position * NUM_IN + channels)[:, None] * NUM_OUT + columns[None, :],
                mask=(channels < NUM_IN)[:, None] & (columns < NUM_OUT)[None, :],
                other=0.0,
            )
            total = tl.dot(a, b, total, input_precision=PRECISION)
    rows = tl.load(row_of_slot + slots).to(tl.int64)
    tl.store(
        out + rows[:, None] * NUM_OUT + columns[None, :],
        total.to(out.dtype.element_ty),
        mask=(rows >= 0)[:, None] & (columns < NUM_OUT)[None, :],
    )


def _sum_over_pairs(  # type: ignore[no-untyped-def]
    x,
    grad,
    parts,
    in_rows,
    out_rows,
    pairs_before_position,
    num_pairs_per_part,
    NUM_IN: tl.constexpr,
    NUM_OUT: tl.constexpr,
    TILE_PAIRS: tl.constexpr,
    TILE_IN: tl.constexpr,
    TILE_OUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write one tile: parts[part, position] = sum of x[input]^T @ grad[output], over some pairs of the position."""
    num_tiles_out = tl.cdiv(NUM_OUT, TILE_OUT)
    channels = (tl.program_id(0) // num_tiles_out) * TILE_IN + tl.arange(0, TILE_IN)
    columns = (tl.program_id(0) % num_tiles_out) * TILE_OUT + tl.arange(0, TILE_OUT)
    position, part = tl.program_id(1), tl.program_id(2)
    start = tl.load(pairs_before_position + position) + part * num_pairs_per_part
    stop = tl.minimum(start + num_pairs_per_part, tl.load(pairs_before_position + position + 1))
    total = tl.zeros((TILE_IN, TILE_OUT), dtype=tl.float32)
    for first in range(start, stop, TILE_PAIRS):
        pairs = first + tl.arange(0, TILE_PAIRS)
        rows = tl.load(in_rows + pairs, mask=pairs < stop, other=0).to(tl.int64)
        a = tl.load(
            x + rows[None, :] * NUM_IN + channels[:, None],
            mask=(channels < NUM_IN)[:, None] & (pairs < stop)[None, :],
            other=0.0,
        )
        rows = tl.load(out_rows + pairs, mask=pairs < stop, other=0).to(tl.int64)
        b = tl.load(
            grad + rows[:, None] * NUM_OUT + columns[None, :],
            mask=(pairs < stop)[:, None] & (columns < NUM_OUT)[None, :],
            other=0.0,
        )
        total = tl.dot(a, b, total, input_precision=PRECISION)
    place = (part * tl.num_programs(1) + position).to(tl.int64)
    tl.store(
        parts + (place * NUM_IN + channels)[:, None] * NUM_OUT + columns[None, :],
        total,
        mask=(channels < NUM_IN)[:, None] & (columns < NUM_OUT)[None, :],
    )


# Triton compiles the source of a function; a run-time type checker may have wrapped it.
sum_over_positions: Any = triton.jit(inspect.unwrap(_sum_over_positions))
sum_over_pairs: Any = triton.jit(inspect.unwrap(_sum_over_pairs))

"""Quantized weights put together and taken apart: fused projections, and the slices of tensor parallelism. Pure.

Called by checkpoint readers and by whoever splits a model over devices. What has no exact answer is None or refused, never approximated.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pagoda_worker.quantization.weights import Fp8Weight, Int4Weight, Int8Weight, QuantizedWeight


def joined(parts: Sequence[QuantizedWeight]) -> QuantizedWeight | None:
    """Along the outputs, of one form and the same inputs. None: they cannot be one (other forms, group sizes or orders of inputs) and
    stay side by side: `Linear.weight` takes a tuple of them."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if any(part.shape[1] != first.shape[1] for part in parts):
        return None
    if all(isinstance(part, Int8Weight) for part in parts):
        return Int8Weight(torch.cat([part.values for part in parts]), torch.cat([part.scales for part in parts]))
    if int4 := [part for part in parts if isinstance(part, Int4Weight)]:
        return _joined_int4(int4) if len(int4) == len(parts) else None
    fp8 = [part for part in parts if isinstance(part, Fp8Weight)]
    return _joined_fp8(fp8) if len(fp8) == len(parts) else None


def _joined_int4(parts: list[Int4Weight]) -> Int4Weight | None:
    first = parts[0]
    if any(part.scales.shape[1] != first.scales.shape[1] or not _same_order(part.order, first.order) for part in parts):
        return None
    zeros = None
    if any(part.zeros is not None for part in parts):
        zeros = torch.cat([torch.full_like(part.scales, 8, dtype=torch.uint8) if part.zeros is None else part.zeros for part in parts])
    return Int4Weight(torch.cat([part.values for part in parts]), torch.cat([part.scales for part in parts]), zeros, first.order)


def _same_order(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _joined_fp8(parts: list[Fp8Weight]) -> Fp8Weight | None:
    """Blocks of rows that do not end where a part ends become rows with a scale each: the same numbers, some more scales."""
    columns = parts[0].block[1]
    if any(part.scales.shape[1] != 1 and part.block[1] != columns for part in parts) or len({part.scales.shape[1] for part in parts}) > 1:
        return None
    rows = parts[0].block[0]
    if any(part.block[0] != rows or part.shape[0] % rows for part in parts):
        rows = 1
    scales = [part.scales if part.block[0] == rows else part.scales.repeat_interleave(part.block[0], 0)[: part.shape[0]] for part in parts]
    return Fp8Weight(torch.cat([part.values for part in parts]), torch.cat(scales), (rows, columns))


def outputs_of(weight: QuantizedWeight, start: int, stop: int) -> QuantizedWeight:
    """Rows start … stop, of a column-parallel linear. Copies nothing."""
    match weight:
        case Int8Weight():
            return Int8Weight(weight.values[start:stop], weight.scales[start:stop])
        case Int4Weight():
            zeros = None if weight.zeros is None else weight.zeros[start:stop]
            return replace(weight, values=weight.values[start:stop], scales=weight.scales[start:stop], zeros=zeros)
        case Fp8Weight():
            rows, columns = weight.block
            if start % rows == 0:
                return Fp8Weight(weight.values[start:stop], weight.scales[start // rows : -(-stop // rows)], weight.block)
            scales = weight.scales.repeat_interleave(rows, 0)[start:stop]
            return Fp8Weight(weight.values[start:stop], scales, (1, columns))


def inputs_of(weight: QuantizedWeight, start: int, stop: int) -> QuantizedWeight:
    """Columns start … stop, of a row-parallel linear. Raises ValueError, with the reason, where they are not whole groups: of int4 in the
    order of its product's inputs, so that a weight with act-order has no such slice."""
    match weight:
        case Int8Weight():
            return Int8Weight(weight.values[:, start:stop].contiguous(), weight.scales)
        case Int4Weight():
            return _int4_inputs(weight, start, stop)
        case Fp8Weight():
            rows, columns = weight.block
            values = weight.values.view(torch.uint8)[:, start:stop].contiguous().view(weight.values.dtype)
            if weight.scales.shape[1] == 1:
                return Fp8Weight(values, weight.scales, (rows, stop - start))
            if start % columns or (stop % columns and stop != weight.shape[1]):
                raise ValueError(f"inputs {start} to {stop} are not whole blocks of {columns}")
            return Fp8Weight(values, weight.scales[:, start // columns : -(-stop // columns)].contiguous(), weight.block)


def _int4_inputs(weight: Int4Weight, start: int, stop: int) -> Int4Weight:
    if weight.order is not None:
        raise ValueError("its groups are in act-order: inputs of one group are spread over all of them")
    groups = weight.scales.shape[1]
    size = weight.shape[1] // groups
    if groups == 1:
        if start % 2 or stop % 2:
            raise ValueError(f"inputs {start} to {stop} are not whole bytes")
        return replace(weight, values=weight.values[:, start // 2 : stop // 2].contiguous())
    if start % size or stop % size:
        raise ValueError(f"inputs {start} to {stop} are not whole groups of {size}")
    zeros = None if weight.zeros is None else weight.zeros[:, start // size : stop // size].contiguous()
    scales = weight.scales[:, start // size : stop // size].contiguous()
    return replace(weight, values=weight.values[:, start // 2 : stop // 2].contiguous(), scales=scales, zeros=zeros)

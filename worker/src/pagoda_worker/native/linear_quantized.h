// Matrix products of weights in eight or four bits with activations that are rounded to eight bits, a scale per row: y = x · wᵀ.
//
// Weights are unsigned in memory (eight bits: plus 128; four: as the nibbles are), activations signed: what AMX (tdpbsud) and VNNI (dpbusd)
// multiply. A zero point z then costs one subtraction, since Σ x (w - z) = Σ x w - z Σ x. Sums of integers are exact, and groups of inputs
// are added in one order whatever the kernel: a row's result depends neither on its batch nor on the instruction set.
//
// Both are packed once into panels of 32 columns (rows of the weight), K to whole steps of 64:
//
//     eight bits    [N / 32 panels][K / 64][2 halves of 16 columns][16 quads of k][16 columns][4 k]     one half: 1 KB, an AMX tile
//     four bits     [N / 32 panels][K / 64][16 quads of k][16 columns][4 k]     columns 0-15 in the low nibbles, 16-31 in the high ones
#pragma once
#include "linear.h"
#include "rounded_rows.h"

namespace pagoda {

// Everything of one call.
struct QuantizedProduct {
    const void* x;          // [M, K] bf16 or float, rows ldx apart
    const uint8_t* weight;  // packed
    const float* scales;    // [N / 32, groups, 32]
    const uint8_t* zeros;   // four bits: [N / 32, groups, 32], or null: 8 everywhere
    const void* bias;       // [N] or null
    const void* residual;   // ADD: [M, N], rows ldy apart
    void* y;                // [M, N], rows ldy apart; SILU_MUL: [M, N / 2], as linear.h has it
    int64_t M, N, K, ldx, ldy, groups;
    int epilogue;
    bool four_bits, wide;  // wide: x, bias, residual and y are float
    const AddedSums* in_sums = nullptr;

    int64_t panels() const { return (N + PANEL - 1) / PANEL; }
    int64_t steps() const { return (K + STEP_8 - 1) / STEP_8; }
    int64_t group() const { return groups == 1 ? steps() * STEP_8 : K / groups; }
    const uint8_t* panel(int64_t i) const { return weight + i * steps() * (four_bits ? TILE_8 : 2 * TILE_8); }
    const float* scales_of(int64_t panel, int64_t group) const { return scales + (panel * groups + group) * PANEL; }
    const uint8_t* zeros_of(int64_t panel, int64_t group) const { return zeros ? zeros + (panel * groups + group) * PANEL : nullptr; }
};

// x in tiles of so many rows. Tiles of AMX have 16, in pairs where there are more.
inline Activations quantize_rows(const QuantizedProduct& p, int64_t tile_rows) {
    const int64_t whole = tile_rows == 16 && p.M > 16 ? 32 : tile_rows, rows = (p.M + whole - 1) / whole * whole;
    auto values = static_cast<int8_t*>(scratch(0, rows * p.steps() * STEP_8));
    auto scales = static_cast<float*>(scratch(2, rows * (1 + p.groups) * sizeof(float)));
    Activations a{values, scales, scales + rows, p.steps(), p.groups, tile_rows};
    constexpr int64_t rows_a_piece = 16;  // fewer are quantized faster by one thread than shared
    parallel_for((rows + rows_a_piece - 1) / rows_a_piece, [&](int64_t piece) {
        for (int64_t m = piece * rows_a_piece; m < std::min(rows, (piece + 1) * rows_a_piece); m++) {
            int8_t* to = a.row(m);
            std::fill_n(a.sums + m * p.groups, p.groups, 0.0f);
            if (m >= p.M) {
                // Up to 16 rows are a tile as high as there are rows.
                for (int64_t s = 0; s < a.steps && p.M > 16; s++) std::memset(to + s * a.step_bytes(), 0, STEP_8);
                a.scales[m] = 0.0f;
            } else if (p.wide) {
                quantize_row(static_cast<const float*>(p.x) + m * p.ldx, p.K, p.groups, p.group(), to, a.step_bytes(), a.scales + m, a.sums + m * p.groups);
            } else {
                quantize_row(static_cast<const bf16*>(p.x) + m * p.ldx, p.K, p.groups, p.group(), to, a.step_bytes(), a.scales + m, a.sums + m * p.groups);
            }
        }
    });
    return a;
}

template <class T>
inline void finish_as(const QuantizedProduct& p, const float* sums, int64_t m0, int64_t rows, int64_t panel) {
    const T *bias = static_cast<const T*>(p.bias), *residual = static_cast<const T*>(p.residual);
    int64_t n0 = panel * PANEL;
    const OpenedRows opened(p.in_sums, panel);
    for (int64_t r = 0; r < rows; r++, sums += PANEL) {
        const bool more = opened.any(m0 + r);
        if (p.epilogue == SILU_MUL) {
            T* y = static_cast<T*>(p.y) + (m0 + r) * p.ldy + n0 / 2;
            for (int c = 0; c < 16; c += W) {
                V gate = load(sums + c), up = load(sums + 16 + c);
                if (more) gate += opened.at(m0 + r, c), up += opened.at(m0 + r, 16 + c);
                if (bias) gate += load(bias + n0 + c), up += load(bias + n0 + 16 + c);
                store(y + c, silu(gate) * up);
            }
            continue;
        }
        T* y = static_cast<T*>(p.y) + (m0 + r) * p.ldy + n0;
        const T* before = p.epilogue == ADD ? residual + (m0 + r) * p.ldy + n0 : nullptr;
        int64_t there = std::min(PANEL, p.N - n0), c = 0;
        for (; c + W <= there; c += W) {
            V v = load(sums + c);
            if (more) v += opened.at(m0 + r, c);
            if (bias) v += load(bias + n0 + c);
            if (before) v += load(before + c);
            store(y + c, v);
        }
        for (; c < there; c++) put(y + c, sums[c] + (bias ? to_float(bias[n0 + c]) : 0.0f) + (before ? to_float(before[c]) : 0.0f));
    }
}

inline void finish(const QuantizedProduct& p, const float* sums, int64_t m0, int64_t rows, int64_t panel) {
    if (p.wide) {
        finish_as<float>(p, sums, m0, rows, panel);
    } else {
        finish_as<bf16>(p, sums, m0, rows, panel);
    }
}

}  // namespace pagoda

#include "linear_quantized_vectors.h"
#if defined(__AMX_INT8__)
#include "linear_quantized_amx.h"
#endif

namespace pagoda {

constexpr int64_t VECTOR_ROWS = 4;  // of four bits: opening nibbles in registers costs less than writing tiles of them

inline void linear_quantized(const QuantizedProduct& p) {
#if defined(__AMX_INT8__)
    if (tiles_serve(p) && !(p.four_bits && p.M <= VECTOR_ROWS)) return by_tiles(p, quantize_rows(p, 16));
#endif
    const Activations a = quantize_rows(p, strip_rows(p.M));
    p.four_bits ? by_vectors<true>(p, a) : by_vectors<false>(p, a);
}

}  // namespace pagoda

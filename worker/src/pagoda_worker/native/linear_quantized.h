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

    int64_t panels() const { return (N + PANEL - 1) / PANEL; }
    int64_t steps() const { return (K + STEP_8 - 1) / STEP_8; }
    int64_t group() const { return groups == 1 ? steps() * STEP_8 : K / groups; }
    const uint8_t* panel(int64_t i) const { return weight + i * steps() * (four_bits ? TILE_8 : 2 * TILE_8); }
    const float* scales_of(int64_t panel, int64_t group) const { return scales + (panel * groups + group) * PANEL; }
    const uint8_t* zeros_of(int64_t panel, int64_t group) const { return zeros ? zeros + (panel * groups + group) * PANEL : nullptr; }
};

inline Activations quantize_rows(const QuantizedProduct& p) {
    int64_t rows = p.M <= 16 ? 16 : (p.M + 31) / 32 * 32;
    auto values = static_cast<int8_t*>(scratch(0, rows * p.steps() * STEP_8));
    auto scales = static_cast<float*>(scratch(2, rows * (1 + p.groups) * sizeof(float)));
    Activations a{values, scales, scales + rows, p.steps(), p.groups};
    constexpr int64_t rows_a_piece = 16;  // fewer are quantized faster by one thread than shared
    parallel_for((rows + rows_a_piece - 1) / rows_a_piece, [&](int64_t piece) {
        for (int64_t m = piece * rows_a_piece; m < (piece + 1) * rows_a_piece; m++) {
            int8_t* to = a.values + m / 16 * a.steps * TILE_8 + m % 16 * STEP_8;
            std::fill_n(a.sums + m * p.groups, p.groups, 0.0f);
            if (m >= p.M) {
                // Up to 16 rows are a tile as high as there are rows.
                for (int64_t s = 0; s < a.steps && p.M > 16; s++) std::memset(to + s * TILE_8, 0, STEP_8);
                a.scales[m] = 0.0f;
            } else if (p.wide) {
                quantize_row(static_cast<const float*>(p.x) + m * p.ldx, p.K, p.groups, p.group(), to, a.scales + m, a.sums + m * p.groups);
            } else {
                quantize_row(static_cast<const bf16*>(p.x) + m * p.ldx, p.K, p.groups, p.group(), to, a.scales + m, a.sums + m * p.groups);
            }
        }
    });
    return a;
}

template <class T>
inline void finish_as(const QuantizedProduct& p, const float* sums, int64_t m0, int64_t rows, int64_t panel) {
    const T *bias = static_cast<const T*>(p.bias), *residual = static_cast<const T*>(p.residual);
    int64_t n0 = panel * PANEL;
    for (int64_t r = 0; r < rows; r++, sums += PANEL) {
        if (p.epilogue == SILU_MUL) {
            T* y = static_cast<T*>(p.y) + (m0 + r) * p.ldy + n0 / 2;
            for (int c = 0; c < 16; c += W) {
                V gate = load(sums + c), up = load(sums + 16 + c);
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

// One group's part of a row and W columns, added to what is there: (Σ x w - zero Σ x) * scale. In four bits every whole number is below
// 2^24 and exact as a float; in eight the difference is taken before.
template <bool FOUR_BITS>
inline V add_group(V so_far, Raw dot, V zeros, float sum_of_x, V scales) {
    if (!FOUR_BITS) return fma(to_floats(less(dot, whole_everywhere(int32_t(sum_of_x) * 128))), scales, so_far);
    return fma(fma(broadcast(0.0f) - zeros, broadcast(sum_of_x), to_floats(dot)), scales, so_far);
}
inline V zeros_at(const uint8_t* zeros, int c) { return zeros ? bytes_to_floats(zeros + c) : broadcast(8.0f); }

// R rows from m on by one panel, without tiles: bytes of the weight times four bytes of x in every place of 32 bits. A step or two ahead of
// them lines are asked for, behind the panel's end the beginning of `next`.
template <int R, bool FOUR_BITS>
inline void rows_of_quantized_panel(const QuantizedProduct& p, const Activations& a, int64_t m, int64_t panel, const uint8_t* next) {
    constexpr int COLUMNS = PANEL / W, HALF = COLUMNS / 2;
    V total[R][COLUMNS];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < COLUMNS; c++) total[r][c] = broadcast(0.0f);
    constexpr int64_t STEP_BYTES_8 = (FOUR_BITS ? 1 : 2) * TILE_8, AHEAD_8 = 2 * TILE_8 / STEP_BYTES_8;
    const uint8_t* w = p.panel(panel);
    const int8_t* rows[R];
    for (int r = 0; r < R; r++) rows[r] = a.row(m + r);
    int64_t quads = p.group() / 4, quad = 0;
    for (int64_t g = 0; g < p.groups; g++) {
        Raw dot[R][COLUMNS];
        for (int r = 0; r < R; r++)
            for (int c = 0; c < COLUMNS; c++) dot[r][c] = no_bytes();
        for (int64_t end = quad + quads; quad < end; quad++) {
            int64_t step = quad / 16, at = step * TILE_8 + quad % 16 * 4;
            int64_t soon = step + AHEAD_8 - a.steps;  // behind the end, where it is not negative
            auto lines = reinterpret_cast<const char*>((soon < 0 ? w + (step + AHEAD_8) * STEP_BYTES_8 : next + soon * STEP_BYTES_8) + quad % 16 * 64);
            for (int64_t half = 0; half < STEP_BYTES_8; half += TILE_8) _mm_prefetch(lines + half, _MM_HINT_T0);
            for (int c = 0; c < HALF; c++) {
                Raw first, second;
                if (FOUR_BITS) {
                    Raw both = load_bytes(w + quad * 64 + c * 4 * W);
                    first = low_nibbles(both), second = high_nibbles(both);
                } else {
                    const uint8_t* from = w + quad / 16 * 2 * TILE_8 + quad % 16 * 64 + c * 4 * W;
                    first = load_bytes(from), second = load_bytes(from + TILE_8);
                }
                for (int r = 0; r < R; r++) {
                    Raw x = four_everywhere(rows[r] + at);
                    dot[r][c] = dot4(dot[r][c], first, x);
                    dot[r][HALF + c] = dot4(dot[r][HALF + c], second, x);
                }
            }
        }
        const uint8_t* zeros = p.zeros_of(panel, g);
        for (int c = 0; c < COLUMNS; c++) {
            V zero = zeros_at(zeros, c * W), scale = load(p.scales_of(panel, g) + c * W);
            for (int r = 0; r < R; r++)
                total[r][c] = add_group<FOUR_BITS>(total[r][c], dot[r][c], zero, a.sums[(m + r) * p.groups + g], scale);
        }
    }
    alignas(64) float sums[R * PANEL];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < COLUMNS; c++) store(sums + r * PANEL + c * W, total[r][c] * broadcast(a.scales[m + r]));
    finish(p, sums, m, R, panel);
}

template <bool FOUR_BITS>
inline void without_tiles(const QuantizedProduct& p, const Activations& a) {
#if defined(__AVX512F__)
    constexpr int ROWS_AT_ONCE = FOUR_BITS ? 4 : 8;
#else
    constexpr int ROWS_AT_ONCE = 2;
#endif
    parallel_for(p.panels(), [&](int64_t panel) {
        const uint8_t* next = p.panel(std::min<int64_t>(panel + team.threads, p.panels() - 1));
        int64_t m = 0;
        for (; m + ROWS_AT_ONCE <= p.M; m += ROWS_AT_ONCE) rows_of_quantized_panel<ROWS_AT_ONCE, FOUR_BITS>(p, a, m, panel, next);
        if (ROWS_AT_ONCE > 4 && m + 4 <= p.M) rows_of_quantized_panel<4, FOUR_BITS>(p, a, m, panel, next), m += 4;
        if (m + 2 <= p.M) rows_of_quantized_panel<2, FOUR_BITS>(p, a, m, panel, next), m += 2;
        if (m < p.M) rows_of_quantized_panel<1, FOUR_BITS>(p, a, m, panel, next);
    });
}

}  // namespace pagoda

#if defined(__AMX_INT8__)
#include "linear_quantized_amx.h"
#endif

namespace pagoda {

constexpr int64_t VECTOR_ROWS = 4;  // of four bits: opening nibbles in registers costs less than writing tiles of them

inline void linear_quantized(const QuantizedProduct& p) {
    Activations a = quantize_rows(p);
#if defined(__AMX_INT8__)
    if (tiles_serve(p) && !(p.four_bits && p.M <= VECTOR_ROWS)) return by_tiles(p, a);
#endif
    p.four_bits ? without_tiles<true>(p, a) : without_tiles<false>(p, a);
}

}  // namespace pagoda

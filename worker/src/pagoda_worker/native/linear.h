// Matrix products with bf16 weights: y = x · wᵀ, accumulated in float32, rounded once.
//
// The weight [N, K] is packed once into panels of 32 columns (rows of the weight), the order in which every instruction set below reads it:
//
//     [N / 32 panels][K / 32][2 halves of 16 columns][16 pairs of k][16 columns][2 k]      one half: 1 KB, an AMX tile
//
// so that a product streams each panel from front to back. Every element of y is summed over k in the same order whatever M is and whichever
// rows stand beside it: a row's result does not depend on its batch.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "parallel.h"
#include "vec.h"

namespace pagoda {

constexpr int64_t PANEL = 32;
constexpr int64_t STEP_K = 32;
constexpr int64_t TILE = 512;  // values of one half panel and one step of k

enum Epilogue { PLAIN = 0, ADD = 1, SILU_MUL = 2 };
struct Added;      // by adapters, see adapters_in_tiles.h
struct AddedSums;  // the same, see adapters_in_sums.h

// Everything of one call.
struct Product {
    const bf16* x;         // [M, K], rows ldx apart
    const bf16* weight;    // packed
    const bf16* bias;      // [N] or null
    const bf16* residual;  // ADD: [M, N], rows ldy apart
    bf16* y;               // [M, N], rows ldy apart; SILU_MUL: [M, N / 2], columns of a panel being 16 of the gate, then 16 of the other
    int64_t M, N, K, ldx, ldy;
    int epilogue;
    const Added* added = nullptr;
    const AddedSums* in_sums = nullptr;

    int64_t panels() const { return (N + PANEL - 1) / PANEL; }
    int64_t steps() const { return K / STEP_K; }
    const bf16* panel(int64_t i) const { return weight + i * steps() * 2 * TILE; }
};

inline void* scratch(int slot, size_t bytes) {
    // Grown, never given back, one per use and calling thread: an engine's products run one after the other on its thread, and ranks of a
    // tensor parallel engine may be threads of one process.
    static thread_local void* memory[6] = {};
    static thread_local size_t sizes[6] = {};
    if (sizes[slot] < bytes) {
        std::free(memory[slot]);
        sizes[slot] = (bytes + 4095) / 4096 * 4096;
        memory[slot] = std::aligned_alloc(4096, sizes[slot]);
    }
    return memory[slot];
}

// As scratch, of each thread.
enum OwnUse { OWN_PRODUCT = 0, OWN_DELTAS = 1 };
inline uint8_t* own_scratch(size_t bytes, OwnUse use = OWN_PRODUCT) {
    static thread_local uint8_t* memory[2] = {};
    static thread_local size_t sizes[2] = {};
    if (sizes[use] < bytes) {
        std::free(memory[use]);
        sizes[use] = (bytes + 4095) / 4096 * 4096;
        memory[use] = static_cast<uint8_t*>(std::aligned_alloc(4096, sizes[use]));
    }
    return memory[use];
}

}  // namespace pagoda

#include "adapters_in_sums.h"

namespace pagoda {

// sums [rows, 32] float32 of panel `panel`, rows m0 … of y.
inline void finish(const Product& p, const float* sums, int64_t m0, int64_t rows, int64_t panel) {
    int64_t n0 = panel * PANEL;
    const OpenedRows opened(p.in_sums, panel);
    for (int64_t r = 0; r < rows; r++, sums += PANEL) {
        const bool more = opened.any(m0 + r);
        if (p.epilogue == SILU_MUL) {
            bf16* y = p.y + (m0 + r) * p.ldy + n0 / 2;
            for (int c = 0; c < 16; c += W) {
                V gate = load(sums + c), up = load(sums + 16 + c);
                if (more) gate += opened.at(m0 + r, c), up += opened.at(m0 + r, 16 + c);
                if (p.bias) gate += load(p.bias + n0 + c), up += load(p.bias + n0 + 16 + c);
                store(y + c, silu(gate) * up);
            }
            continue;
        }
        bf16* y = p.y + (m0 + r) * p.ldy + n0;
        const bf16* before = p.epilogue == ADD ? p.residual + (m0 + r) * p.ldy + n0 : nullptr;
        int64_t there = std::min(PANEL, p.N - n0), c = 0;
        for (; c + W <= there; c += W) {
            V v = load(sums + c);
            if (more) v += opened.at(m0 + r, c);
            if (p.bias) v += load(p.bias + n0 + c);
            if (before) v += load(before + c);
            store(y + c, v);
        }
        for (; c < there; c++)
            put(y + c, sums[c] + (p.bias ? to_float(p.bias[n0 + c]) : 0.0f) + (before ? to_float(before[c]) : 0.0f));
    }
}

#if defined(__AMX_BF16__)
}  // namespace pagoda
#include "linear_amx.h"
#else

constexpr int COLUMNS = PANEL / W;  // vectors per row of a panel

// sums [R, 32] of R rows of x and one panel. `ldw`: from one row of `wide` to the next.
template <int R>
inline void rows_of_panel(const Product& p, const bf16* x, const float* wide, const bf16* panel, float* sums, int64_t ldw) {
    V acc[R][COLUMNS];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < COLUMNS; c++) acc[r][c] = broadcast(0.0f);
    for (int64_t k = 0; k < p.K; k += STEP_K, panel += 2 * TILE) {
        for (int pair = 0; pair < 16; pair++) {
            for (int c = 0; c < COLUMNS; c++) {
                const bf16* at = panel + (c * W / 16) * TILE + pair * 32 + (c * W % 16) * 2;
                Raw weights = load_pairs(at);
#if defined(__AVX512BF16__)
                for (int r = 0; r < R; r++) {
                    int32_t both;
                    std::memcpy(&both, x + r * p.ldx + k + 2 * pair, 4);
                    acc[r][c] = _mm512_dpbf16_ps(acc[r][c], (__m512bh)_mm512_set1_epi32(both), (__m512bh)weights);
                }
#else
                V first = even(weights), second = odd(weights);
                for (int r = 0; r < R; r++) {
                    const float* values = wide + r * ldw + k + 2 * pair;
                    acc[r][c] = fma(broadcast(values[0]), first, acc[r][c]);
                    acc[r][c] = fma(broadcast(values[1]), second, acc[r][c]);
                }
#endif
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < COLUMNS; c++) store(sums + r * PANEL + c * W, acc[r][c]);
}

// x in float32, [M, K]; null where bf16 is multiplied as it is.
inline float* wide_rows(const Product& p) {
    float* wide = nullptr;
#if !defined(__AVX512BF16__)
    wide = static_cast<float*>(scratch(0, p.M * p.K * sizeof(float)));
    parallel_for((p.M + 31) / 32, [&](int64_t block) {
        for (int64_t m = block * 32; m < std::min(p.M, block * 32 + 32); m++)
            for (int64_t k = 0; k < p.K; k += W) store(wide + m * p.K + k, load(p.x + m * p.ldx + k));
    });
#endif
    return wide;
}

}  // namespace pagoda

#include "linear_vectors.h"

namespace pagoda {

#if defined(__AVX512BF16__)
constexpr int64_t ROWS_OF_PANEL = 8;
#else
constexpr int64_t ROWS_OF_PANEL = STREAMED_ROWS;
#endif

// few(m, rows) for all rows, ROWS_OF_PANEL at a time: rows is a constant.
template <class Few>
inline void in_fews(int64_t M, const Few& few) {
    int64_t m = 0;
    for (; m + ROWS_OF_PANEL <= M; m += ROWS_OF_PANEL) few(m, std::integral_constant<int, ROWS_OF_PANEL>());
    if (m < M) with_constant<1, ROWS_OF_PANEL>(M - m, [&](auto rows) { few(m, rows); });
}

inline void linear(const Product& p) {
#if !defined(__AVX512BF16__)
    if (p.M > STREAMED_ROWS) return many_rows(p, [&](int64_t panel) { return PlainPanel{p, panel}; });
#endif
    float* wide = wide_rows(p);
    parallel_for(p.panels(), [&](int64_t panel) {
        open_added(p.in_sums, panel, panel + 1, 0, p.M);
        in_fews(p.M, [&](int64_t m, auto rows) {
            alignas(64) float sums[rows * PANEL];
            rows_of_panel<rows>(p, p.x + m * p.ldx, wide + m * p.K, p.panel(panel), sums, p.K);
            finish(p, sums, m, rows, panel);
        });
    });
}

}  // namespace pagoda
#endif

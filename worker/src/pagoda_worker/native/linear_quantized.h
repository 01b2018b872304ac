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

namespace pagoda {

constexpr int64_t STEP_8 = 64;    // k of one tile of bytes
constexpr int64_t TILE_8 = 1024;  // bytes

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
    const Added* added = nullptr;

    int64_t panels() const { return (N + PANEL - 1) / PANEL; }
    int64_t steps() const { return (K + STEP_8 - 1) / STEP_8; }
    int64_t group() const { return groups == 1 ? steps() * STEP_8 : K / groups; }
    const uint8_t* panel(int64_t i) const { return weight + i * steps() * (four_bits ? TILE_8 : 2 * TILE_8); }
    const float* scales_of(int64_t panel, int64_t group) const { return scales + (panel * groups + group) * PANEL; }
    const uint8_t* zeros_of(int64_t panel, int64_t group) const { return zeros ? zeros + (panel * groups + group) * PANEL : nullptr; }
};

// x as integers: tile after tile, [M / 16][K / 64][16 rows][64]. Inputs past the end are zeros; so are rows, where M is above 16.
struct Activations {
    int8_t* values;
    float* scales;  // [M / 16 * 16]
    float* sums;    // [M / 16 * 16, groups] of the integers: whole numbers below 2^24
    int64_t steps, groups;

    const int8_t* row(int64_t m) const { return values + m / 16 * steps * TILE_8 + m % 16 * STEP_8; }
};

#if defined(__AVX512F__)
inline V absolute(V v) { return _mm512_abs_ps(v); }
inline void store_bytes(int8_t* p, V v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)));
}
inline Raw no_bytes() { return _mm512_setzero_si512(); }
inline Raw load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline Raw low_nibbles(Raw v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
inline Raw high_nibbles(Raw v) { return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15)); }
inline V to_floats(Raw v) { return _mm512_cvtepi32_ps(v); }
inline Raw whole_everywhere(int32_t x) { return _mm512_set1_epi32(x); }
inline Raw load_whole(const int32_t* p) { return _mm512_loadu_si512(p); }
inline Raw less(Raw a, Raw b) { return _mm512_sub_epi32(a, b); }
inline V bytes_to_floats(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline Raw four_everywhere(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
}
// acc + Σ of four unsigned bytes times four signed ones, in each place of 32 bits.
inline Raw dot4(Raw acc, Raw w, Raw x) {
#if defined(__AVX512VNNI__)
    return _mm512_dpbusd_epi32(acc, w, x);
#else
    Raw even_w = _mm512_and_si512(w, _mm512_set1_epi16(255)), odd_w = _mm512_srli_epi16(w, 8);
    Raw even_x = _mm512_srai_epi16(_mm512_slli_epi16(x, 8), 8), odd_x = _mm512_srai_epi16(x, 8);
    return _mm512_add_epi32(acc, _mm512_add_epi32(_mm512_madd_epi16(even_w, even_x), _mm512_madd_epi16(odd_w, odd_x)));
#endif
}
#else
inline V absolute(V v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
inline void store_bytes(int8_t* p, V v) {
    Raw whole = _mm256_cvtps_epi32(v);
    __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(half, half));
}
inline Raw no_bytes() { return _mm256_setzero_si256(); }
inline Raw load_bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Raw low_nibbles(Raw v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
inline Raw high_nibbles(Raw v) { return _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15)); }
inline V to_floats(Raw v) { return _mm256_cvtepi32_ps(v); }
inline Raw whole_everywhere(int32_t x) { return _mm256_set1_epi32(x); }
inline Raw load_whole(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Raw less(Raw a, Raw b) { return _mm256_sub_epi32(a, b); }
inline V bytes_to_floats(const uint8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline Raw four_everywhere(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
}
// Not maddubs: its sums of two products stop at 2^15.
inline Raw dot4(Raw acc, Raw w, Raw x) {
    Raw even_w = _mm256_and_si256(w, _mm256_set1_epi16(255)), odd_w = _mm256_srli_epi16(w, 8);
    Raw even_x = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8), odd_x = _mm256_srai_epi16(x, 8);
    return _mm256_add_epi32(acc, _mm256_add_epi32(_mm256_madd_epi16(even_w, even_x), _mm256_madd_epi16(odd_w, odd_x)));
}
#endif

// As scratch, of each thread.
inline uint8_t* own_scratch(size_t bytes) {
    static thread_local uint8_t* memory = nullptr;
    static thread_local size_t size = 0;
    if (size < bytes) {
        std::free(memory);
        size = (bytes + 4095) / 4096 * 4096;
        memory = static_cast<uint8_t*>(std::aligned_alloc(4096, size));
    }
    return memory;
}

constexpr float SMALLEST_SCALE = 1e-12f;  // of a row of zeros

// One row, ragged ends included.
template <class T>
inline void quantize_row(const T* x, int64_t K, int64_t groups, int64_t group, int8_t* to, float* scale, float* sums) {
    V most = broadcast(0.0f);
    int64_t whole = K / W * W;
    for (int64_t k = 0; k < whole; k += W) most = max(most, absolute(load(x + k)));
    float largest = highest(most);
    for (int64_t k = whole; k < K; k++) largest = std::max(largest, std::fabs(to_float(x[k])));
    *scale = std::max(largest / 127.0f, SMALLEST_SCALE);
    float inverse = 1.0f / *scale;
    alignas(64) int8_t step[STEP_8];
    for (int64_t k = 0; k < K; k += STEP_8, to += TILE_8) {
        int64_t there = std::min(STEP_8, K - k), i = 0;
        for (; i + W <= there; i += W) store_bytes(step + i, round(load(x + k + i) * broadcast(inverse)));
        for (; i < there; i++) step[i] = int8_t(std::nearbyintf(to_float(x[k + i]) * inverse));
        for (; i < STEP_8; i++) step[i] = 0;
        std::memcpy(to, step, STEP_8);
        if (groups == 1 || group % STEP_8 == 0) {
            int32_t sum = 0;
            for (int j = 0; j < STEP_8; j++) sum += step[j];
            sums[groups == 1 ? 0 : k / group] += float(sum);
        } else {
            for (int64_t j = 0; j < there; j++) sums[(k + j) / group] += float(step[j]);
        }
    }
}

inline Activations quantize_rows(const QuantizedProduct& p) {
    int64_t rows = p.M <= 16 ? 16 : (p.M + 31) / 32 * 32;
    auto values = static_cast<int8_t*>(scratch(0, rows * p.steps() * STEP_8));
    auto scales = static_cast<float*>(scratch(2, rows * (1 + p.groups) * sizeof(float)));
    Activations a{values, scales, scales + rows, p.steps(), p.groups};
    int64_t rows_a_piece = p.M <= 16 ? 16 : 8;  // a step that decodes is quantized faster by one thread than shared
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

// R rows from m on by one panel, without tiles: bytes of the weight times four bytes of x in every place of 32 bits.
template <int R, bool FOUR_BITS>
inline void rows_of_quantized_panel(const QuantizedProduct& p, const Activations& a, int64_t m, int64_t panel) {
    constexpr int COLUMNS = PANEL / W, HALF = COLUMNS / 2;
    V total[R][COLUMNS];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < COLUMNS; c++) total[r][c] = broadcast(0.0f);
    const uint8_t* w = p.panel(panel);
    const int8_t* rows[R];
    for (int r = 0; r < R; r++) rows[r] = a.row(m + r);
    int64_t quads = p.group() / 4, quad = 0;
    for (int64_t g = 0; g < p.groups; g++) {
        Raw dot[R][COLUMNS];
        for (int r = 0; r < R; r++)
            for (int c = 0; c < COLUMNS; c++) dot[r][c] = no_bytes();
        for (int64_t end = quad + quads; quad < end; quad++) {
            int64_t at = quad / 16 * TILE_8 + quad % 16 * 4;
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
    parallel_for((p.panels() + 1) / 2, [&](int64_t pair) {
        for (int64_t panel = 2 * pair; panel < std::min(2 * pair + 2, p.panels()); panel++) {
            int64_t m = 0;
            for (; m + ROWS_AT_ONCE <= p.M; m += ROWS_AT_ONCE) rows_of_quantized_panel<ROWS_AT_ONCE, FOUR_BITS>(p, a, m, panel);
            for (; m < p.M; m++) rows_of_quantized_panel<1, FOUR_BITS>(p, a, m, panel);
        }
    });
}

}  // namespace pagoda

#if defined(__AMX_INT8__)
#include "linear_quantized_amx.h"
#endif

namespace pagoda {

inline void linear_quantized(const QuantizedProduct& p) {
    Activations a = quantize_rows(p);
#if defined(__AMX_INT8__)
    if (tiles_serve(p)) return by_tiles(p, a);
#endif
    p.four_bits ? without_tiles<true>(p, a) : without_tiles<false>(p, a);
}

}  // namespace pagoda

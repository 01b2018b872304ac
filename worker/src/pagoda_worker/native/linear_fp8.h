// Matrix products of weights in e4m3 with bf16 activations: y = x · wᵀ.
//
// A weight is a byte in memory and becomes bf16, which holds every e4m3 exactly, on its way into the product of linear.h: a few steps of k at
// a time where few rows ask for it, else a panel at once. The order is linear.h's:
//
//     [N / 32 panels][K / 32][2 halves of 16 columns][16 pairs of k][16 columns][2 k]     a step: 1 KB
//
// Scales are applied to sums in float32, one for each group of inputs and column: a row's result does not depend on its batch.
#pragma once
#include "linear_quantized.h"

namespace pagoda {

constexpr int64_t STEP_BYTES = 2 * TILE;

struct Fp8Product : Product {
    const uint8_t* bytes;  // packed; `weight` is not used
    const float* scales;   // [N / 32, groups, 32]
    int64_t groups;

    const uint8_t* panel_bytes(int64_t i) const { return bytes + i * steps() * STEP_BYTES; }
    const float* scales_of(int64_t panel, int64_t group) const { return scales + (panel * groups + group) * PANEL; }
};

// e4m3 → bf16. Exponents differ by 120; the seven numbers below the smallest exponent are looked up. There must be no NaN among them.
alignas(32) constexpr uint16_t SMALLEST[16] = {0, 0x3B00, 0x3B80, 0x3BC0, 0x3C00, 0x3C20, 0x3C40, 0x3C60,
                                               0, 0x3B00, 0x3B80, 0x3BC0, 0x3C00, 0x3C20, 0x3C40, 0x3C60};
#if defined(__AVX512F__)
constexpr int64_t OPENED = 32;
inline void open_bytes(const uint8_t* from, bf16* to) {
    __m512i v = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    __m512i small = _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i*>(SMALLEST)));
    __m512i wide = _mm512_add_epi16(_mm512_and_si512(_mm512_slli_epi16(v, 4), _mm512_set1_epi16(0x7F0)), _mm512_set1_epi16(120 << 7));
    wide = _mm512_mask_permutexvar_epi16(wide, _mm512_testn_epi16_mask(v, _mm512_set1_epi16(0x78)), v, small);
    __m512i sign = _mm512_slli_epi16(v, 8);
    _mm512_storeu_si512(to, _mm512_ternarylogic_epi32(wide, sign, _mm512_set1_epi16(int16_t(0x8000)), 0xF8));  // wide | (sign & 0x8000)
}
#else
constexpr int64_t OPENED = 16;
inline void open_bytes(const uint8_t* from, bf16* to) {
    __m256i v = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    __m256i size = _mm256_and_si256(v, _mm256_set1_epi16(0x7F));
    __m256i sign = _mm256_slli_epi16(_mm256_and_si256(v, _mm256_set1_epi16(0x80)), 8);
    __m256i wide = _mm256_add_epi16(_mm256_slli_epi16(size, 4), _mm256_set1_epi16(120 << 7));
    __m256i both = _mm256_add_epi16(_mm256_mullo_epi16(size, _mm256_set1_epi16(0x0202)), _mm256_set1_epi16(0x0100));  // of the bytes
    __m256i small = _mm256_shuffle_epi8(_mm256_load_si256(reinterpret_cast<const __m256i*>(SMALLEST)), both);
    wide = _mm256_blendv_epi8(wide, small, _mm256_cmpgt_epi16(_mm256_set1_epi16(8), size));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_or_si256(wide, sign));
}
#endif

inline void open_steps(const uint8_t* from, int64_t steps, bf16* to) {
    for (int64_t i = 0; i < steps * STEP_BYTES; i += OPENED) open_bytes(from + i, to + i);
}

// totals [rows, 32] += sums of one group of inputs, and more without a scale; after the last one they are finished.
inline void add_scaled(const Fp8Product& p, const float* sums, float* totals, int64_t m, int64_t rows, int64_t panel, int64_t group,
                       const float* more = nullptr) {
    const float* scales = p.scales_of(panel, group);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < PANEL; c += W) {
            V before = group == 0 ? broadcast(0.0f) : load(totals + r * PANEL + c);
            V total = fma(load(sums + r * PANEL + c), load(scales + c), before);
            store(totals + r * PANEL + c, more ? total + load(more + r * PANEL + c) : total);
        }
    if (group + 1 == p.groups) finish(p, totals, m, rows, panel);
}

#if defined(__AMX_BF16__)

constexpr int64_t STEPS_AT_ONCE = 2;  // 4 KB of bf16, in L1 while it is multiplied

// Rows m … m + 31 (rows of them there) of x, which starts at `x` with rows `stride` bytes and steps `step_bytes` apart, by one panel.
// `open`: the whole panel in bf16; null: it is opened here. The tiles are configured for what is there.
inline void strip_by_panel(const Fp8Product& p, const bf16* upper, const bf16* lower, int64_t stride, int64_t step_values, int64_t m,
                           int64_t rows, int64_t panel, const bf16* open) {
    alignas(64) bf16 here[2][STEPS_AT_ONCE * 2 * TILE];  // one is opened while the other is multiplied
    alignas(64) float sums[32 * PANEL], totals[32 * PANEL], more[32 * PANEL];
    const uint8_t* bytes = p.panel_bytes(panel);
    int64_t steps_a_group = p.steps() / p.groups, step = 0;
    auto open_block = [&](int64_t from) {
        if (from >= p.steps()) return;
        prefetch_to_l1(bytes + (from + 3 * STEPS_AT_ONCE) * STEP_BYTES, STEPS_AT_ONCE * STEP_BYTES / 64);
        open_steps(bytes + from * STEP_BYTES, std::min(STEPS_AT_ONCE, p.steps() - from), here[from / STEPS_AT_ONCE % 2]);
    };
    if (!open) open_block(0);
    for (int64_t group = 0; group < p.groups; group++) {
        zero_sums();
        for (int64_t end = step + steps_a_group; step < end; step++) {
            const bf16* w = open + step * 2 * TILE;
            if (!open) {
                if (step % STEPS_AT_ONCE == 0) open_block(step + STEPS_AT_ONCE);
                w = here[step / STEPS_AT_ONCE % 2] + step % STEPS_AT_ONCE * 2 * TILE;
            }
            _tile_loadd(4, upper + step * step_values, stride);
            _tile_loadd(6, w, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, w + TILE, 64);
            _tile_dpbf16ps(1, 4, 7);
            if (lower) {
                _tile_loadd(5, lower + step * step_values, stride);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
        _tile_stored(0, sums, PANEL * 4);
        _tile_stored(1, sums + 16, PANEL * 4);
        if (lower) {
            _tile_stored(2, sums + 16 * PANEL, PANEL * 4);
            _tile_stored(3, sums + 16 * PANEL + 16, PANEL * 4);
        }
        const bool adds = p.added && group + 1 == p.groups;
        if (adds) added_sums(*p.added, m / STRIP, panel, lower != nullptr, more);
        add_scaled(p, sums, totals, m, rows, panel, group, adds ? more : nullptr);
    }
}

inline void linear_fp8(const Fp8Product& p) {
    if (p.M <= 16) {
        parallel_for(p.panels(), [&](int64_t panel) {
            configure(TileShape(p.M));
            strip_by_panel(p, p.x, nullptr, p.ldx * 2, STEP_K, 0, p.M, panel, nullptr);
            _tile_release();
        });
        return;
    }
    int64_t strips = (p.M + 31) / 32, strip_values = 2 * p.steps() * TILE;
    auto packed = static_cast<bf16*>(scratch(0, strips * strip_values * sizeof(bf16)));
    pack_rows(p, 0, strips * 32, 0, p.steps(), packed);
    parallel_for(p.panels(), [&](int64_t panel) {
        bf16* open = nullptr;
        if (strips > 1) {
            open = reinterpret_cast<bf16*>(own_scratch(p.steps() * STEP_BYTES * sizeof(bf16)));
            open_steps(p.panel_bytes(panel), p.steps(), open);
        }
        configure(TileShape(16));
        for (int64_t strip = 0; strip < strips; strip++) {
            const bf16* upper = packed + strip * strip_values;
            strip_by_panel(p, upper, upper + strip_values / 2, 64, TILE, strip * 32, std::min<int64_t>(32, p.M - strip * 32), panel, open);
        }
        _tile_release();
    });
}

#else

// By the kernels of linear.h, a group of inputs as a product of its own.
template <int R>
inline void rows_of_fp8_panel(const Fp8Product& p, const float* wide, const bf16* open, int64_t m, int64_t panel) {
    alignas(64) float sums[R * PANEL], totals[R * PANEL];
    int64_t size = p.K / p.groups;
    Product part = p;
    for (int64_t group = 0; group < p.groups; group++) {
        part.K = size;
        rows_of_panel<R>(part, p.x + m * p.ldx + group * size, wide + m * p.K + group * size, open + group * size * PANEL, sums, p.K);
        add_scaled(p, sums, totals, m, R, panel, group);
    }
}

#if !defined(__AVX512BF16__)
// For strips_by_panel.
struct Fp8Panel {
    static constexpr int64_t STEP_BYTES = pagoda::STEP_BYTES;
    const Fp8Product& p;
    int64_t panel;

    int64_t groups() const { return p.groups; }
    const void* step(int64_t i) const { return p.panel_bytes(panel) + i * STEP_BYTES; }
    const bf16* straight(int64_t) const { return nullptr; }
    void widen(int64_t i, float* to) const {
        alignas(64) bf16 open[2 * TILE];
        open_steps(p.panel_bytes(panel) + i * STEP_BYTES, 1, open);
        widen_step(open, to);
    }
    void end_group(const float* sums, float* totals, int64_t m, int64_t rows, int64_t group) const {
        add_scaled(p, sums, totals, m, rows, panel, group);
    }
};
#endif

inline void linear_fp8(const Fp8Product& p) {
#if !defined(__AVX512BF16__)
    if (p.M > STREAMED_ROWS) return many_rows(p, [&](int64_t panel) { return Fp8Panel{p, panel}; });
#endif
    float* wide = wide_rows(p);
    parallel_for(p.panels(), [&](int64_t panel) {
        bf16* open = reinterpret_cast<bf16*>(own_scratch(p.steps() * STEP_BYTES * sizeof(bf16)));
        open_steps(p.panel_bytes(panel), p.steps(), open);
        open_added(p.in_sums, panel, panel + 1, 0, p.M);
        in_fews(p.M, [&](int64_t m, auto rows) { rows_of_fp8_panel<rows>(p, wide, open, m, panel); });
    });
}

#endif

}  // namespace pagoda

// Products of quantized weights by vectors: bytes of the weight times four bytes of x in every place of 32 bits. Included by linear_quantized.h.
//
// Rows come in strips as high as the registers have room for sums. Up to one strip, a weight is read once and used at once. With more, a block of
// the panel stays in L1 while all strips pass, four bits opened to bytes for all of them; what a strip has summed waits in memory until the next
// block. (After Goto and van de Geijn, 2008.)
#pragma once
#include <numeric>

#include "strips.h"

namespace pagoda {

constexpr int COLUMNS_8 = PANEL / W;   // vectors of sums a row
constexpr int64_t BLOCK_QUADS = 128;   // 16 KB of bytes: they and a strip's x fit into L1

template <int R>
using Dots = Raw[R][COLUMNS_8];

// `quads` of one step: dots += w · x. Rows of x are STEP_8 apart, halves of w TILE_8, unless they are nibbles of the same bytes.
template <int R, bool NIBBLES>
__attribute__((always_inline)) inline void multiply_quads(const uint8_t* w, const int8_t* x, int64_t quads, Dots<R>& dots) {
    constexpr int HALF = COLUMNS_8 / 2;
#pragma GCC unroll 2
    for (const uint8_t* end = w + quads * 64; w != end; w += 64, x += 4)
        for (int c = 0; c < HALF; c++) {
            Raw first = load_bytes(w + c * 4 * W), second;
            if (NIBBLES) {
                second = high_nibbles(first), first = low_nibbles(first);
            } else {
                second = load_bytes(w + TILE_8 + c * 4 * W);
            }
            for (int r = 0; r < R; r++) {
                Raw four = four_everywhere(x + r * STEP_8);
                dots[r][c] = dot4(dots[r][c], first, four);
                dots[r][HALF + c] = dot4(dots[r][HALF + c], second, four);
            }
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

template <int R, bool FOUR_BITS>
__attribute__((always_inline)) inline void add_groups(const QuantizedProduct& p, const Activations& a, int64_t m, int64_t panel, int64_t group,
                                                      const Dots<R>& dots, V (&totals)[R][COLUMNS_8]) {
    const uint8_t* zeros = p.zeros_of(panel, group);
    for (int c = 0; c < COLUMNS_8; c++) {
        V zero = zeros_at(zeros, c * W), scale = load(p.scales_of(panel, group) + c * W);
        for (int r = 0; r < R; r++)
            totals[r][c] = add_group<FOUR_BITS>(totals[r][c], dots[r][c], zero, a.sums[(m + r) * p.groups + group], scale);
    }
}

template <int R>
__attribute__((always_inline)) inline void finish_strip(const QuantizedProduct& p, const Activations& a, int64_t m, int64_t panel,
                                                        const V (&totals)[R][COLUMNS_8]) {
    alignas(64) float sums[R * PANEL];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < COLUMNS_8; c++) store(sums + r * PANEL + c * W, totals[r][c] * broadcast(a.scales[m + r]));
    finish(p, sums, m, std::min<int64_t>(R, p.M - m), panel);
}

// All rows, at most STREAMED, by one panel. Some steps ahead lines are asked for, behind the panel's end the beginning of `next`.
template <int R, bool FOUR_BITS>
inline void few_rows_by_vectors(const QuantizedProduct& p, const Activations& a, int64_t panel, const uint8_t* next) {
    constexpr int64_t STEP_BYTES_8 = (FOUR_BITS ? 1 : 2) * TILE_8, AHEAD_8 = 2 * TILE_8 / STEP_BYTES_8;
    const uint8_t* w = p.panel(panel);
    V totals[R][COLUMNS_8];
    for (auto& row : totals)
        for (V& total : row) total = broadcast(0.0f);
    const int64_t quads = p.group() / 4;
    open_added(p.in_sums, panel, panel + 1, 0, p.M);
    for (int64_t group = 0, quad = 0; group < p.groups; group++) {
        Dots<R> dots;
        for (auto& row : dots)
            for (Raw& dot : row) dot = no_bytes();
        for (int64_t end = quad + quads, many; quad < end; quad += many) {
            const int64_t step = quad / 16, within = quad % 16, soon = step + AHEAD_8 - a.steps;
            many = std::min(end - quad, 16 - within);
            auto lines = reinterpret_cast<const char*>(soon < 0 ? w + (step + AHEAD_8) * STEP_BYTES_8 : next + soon * STEP_BYTES_8);
            for (int64_t line = within; line < within + many; line++)
                for (int64_t half = 0; half < STEP_BYTES_8; half += TILE_8) _mm_prefetch(lines + line * 64 + half, _MM_HINT_T0);
            multiply_quads<R, FOUR_BITS>(w + step * STEP_BYTES_8 + within * 64, a.values + step * R * STEP_8 + within * 4, many, dots);
        }
        add_groups<R, FOUR_BITS>(p, a, 0, panel, group, dots, totals);
    }
    finish_strip<R>(p, a, 0, panel, totals);
}

// A group's sums of a strip, scaled and added to `totals`; behind the last one y is written.
template <int R, bool FOUR_BITS>
__attribute__((noinline)) void scale_strip(const QuantizedProduct& p, const Activations& a, int64_t m, int64_t panel, int64_t group,
                                           const int32_t* dots, float* totals, bool last) {
    alignas(64) float sums[R * PANEL];
    const uint8_t* zeros = p.zeros_of(panel, group);
    for (int c = 0; c < PANEL; c += W) {
        V zero = zeros_at(zeros, c), scale = load(p.scales_of(panel, group) + c);
        for (int r = 0; r < R; r++) {
            V before = group == 0 ? broadcast(0.0f) : load(totals + r * PANEL + c);
            V total = add_group<FOUR_BITS>(before, load_whole(dots + r * PANEL + c), zero, a.sums[(m + r) * p.groups + group], scale);
            if (last) {
                store(sums + r * PANEL + c, total * broadcast(a.scales[m + r]));
            } else {
                store(totals + r * PANEL + c, total);
            }
        }
    }
    if (last) finish(p, sums, m, std::min<int64_t>(R, p.M - m), panel);
}

// Quads of a panel that pass at once, in whole steps and whole groups. Only sums of bytes can wait within a group, being whole numbers.
inline int64_t block_quads(const QuantizedProduct& p, int64_t steps) {
    if (!p.four_bits) return BLOCK_QUADS;
    if (p.groups == 1) return steps * 16;
    const int64_t whole = std::lcm(p.group() / 4, int64_t(16));
    return whole * std::max<int64_t>(1, BLOCK_QUADS / whole);
}

// sums [R, 32] = or += quads of a panel by one strip.
template <int R, bool NIBBLES>
__attribute__((noinline)) void sum_quads(const uint8_t* w, const int8_t* x, int64_t quad, int64_t end, bool add, int32_t* sums, Coming& coming,
                                         const int8_t* next_x) {
    Dots<R> dots;
    for (int r = 0; r < R; r++)
        for (int c = 0; c < COLUMNS_8; c++) dots[r][c] = add ? load_whole(sums + r * PANEL + c * W) : no_bytes();
    for (int64_t many; quad < end; quad += many) {
        const int64_t step = quad / 16, within = quad % 16;
        many = std::min(end - quad, 16 - within);
        coming.ask();
        for (int line = 0; line < R; line++) _mm_prefetch(reinterpret_cast<const char*>(next_x + (step * R + line) * STEP_8), _MM_HINT_T0);
        const uint8_t* from = w + step * (NIBBLES ? 1 : 2) * TILE_8;
        if (many == 16) {
            multiply_quads<R, NIBBLES>(from, x + step * R * STEP_8, 16, dots);
        } else {
            multiply_quads<R, NIBBLES>(from + within * 64, x + step * R * STEP_8 + within * 4, many, dots);
        }
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < COLUMNS_8; c++) keep_whole(sums + r * PANEL + c * W, dots[r][c]);
}

// Quads begin … end of a panel by one strip, `w` from begin on, bytes or, if not opened before, NIBBLES. `waiting` [R, 32]: sums of the blocks
// before, whole numbers of bytes, scaled ones of nibbles.
template <int R, bool FOUR_BITS, bool NIBBLES>
inline void block_by_strip(const QuantizedProduct& p, const Activations& a, int64_t m, int64_t panel, const uint8_t* w, int64_t begin, int64_t end,
                           int32_t* waiting, Coming& coming, const int8_t* next_x) {
    const int8_t* x = a.values + m * a.steps * STEP_8 + begin * R * 4;
    const bool ends = end == a.steps * 16;
    if (!FOUR_BITS) {
        sum_quads<R, false>(w, x, 0, end - begin, begin > 0, waiting, coming, next_x);
        if (ends) scale_strip<R, false>(p, a, m, panel, 0, waiting, nullptr, true);
        return;
    }
    alignas(64) int32_t dots[R * PANEL];
    const int64_t quads = p.group() / 4;
    for (int64_t quad = begin, group = begin / quads; quad < end && group < p.groups; quad += quads, group++) {
        sum_quads<R, NIBBLES>(w, x, quad - begin, quad - begin + quads, false, dots, coming, next_x);
        scale_strip<R, true>(p, a, m, panel, group, dots, reinterpret_cast<float*>(waiting), group + 1 == p.groups);
    }
}

inline void open_nibbles(const uint8_t* from, int64_t steps, uint8_t* to) {
    for (int64_t step = 0; step < steps; step++, to += 2 * TILE_8, from += TILE_8)
        for (int64_t i = 0; i < TILE_8; i += 4 * W) {
            Raw both = load_bytes(from + i);
            keep_bytes(to + i, low_nibbles(both));
            keep_bytes(to + TILE_8 + i, high_nibbles(both));
        }
}

// Rows m0 … m1, whole strips but for the last, by one panel, behind which `next` lies.
template <int R, bool FOUR_BITS>
inline void strips_by_panel(const QuantizedProduct& p, const Activations& a, int64_t m0, int64_t m1, int64_t panel, const uint8_t* next) {
    constexpr int64_t QUAD_BYTES = FOUR_BITS ? 64 : 128;
    const int64_t block = block_quads(p, a.steps), strips = (m1 - m0 + R - 1) / R, quads = a.steps * 16;
    const bool opens = FOUR_BITS && strips > 1;
    uint8_t* open = own_scratch((opens ? block * 128 : 0) + strips * R * PANEL * sizeof(int32_t));
    auto waiting = reinterpret_cast<int32_t*>(open + (opens ? block * 128 : 0));
    for (int64_t begin = 0; begin < quads; begin += block) {
        const int64_t end = std::min(begin + block, quads), left = quads - end;
        const uint8_t* w = p.panel(panel) + begin * QUAD_BYTES;
        Coming coming(left > 0 ? p.panel(panel) + end * QUAD_BYTES : next, std::min(block, left > 0 ? left : quads) * QUAD_BYTES,
                      strips * (end - begin) / 16);
        if (opens) open_nibbles(w, (end - begin) / 16, open);
        for (int64_t strip = 0; strip < strips; strip++) {
            int32_t* sums = waiting + strip * R * PANEL;
            const int64_t next_row = strip + 1 < strips ? m0 + (strip + 1) * R : m0;  // of the next block, if it is the first again
            const int8_t* next_x = a.values + (next_row * a.steps + (strip + 1 < strips ? begin : end % quads) / 16 * R) * STEP_8;
            if (left == 0) {
                const int64_t columns = p.epilogue == SILU_MUL ? PANEL / 2 : PANEL, m = m0 + strip * R;
                p.wide ? ask_for_results<float>(p, m, R, panel, columns, p.epilogue == ADD) : ask_for_results<bf16>(p, m, R, panel, columns, p.epilogue == ADD);
            }
            if (opens || !FOUR_BITS) {
                block_by_strip<R, FOUR_BITS, false>(p, a, m0 + strip * R, panel, opens ? open : w, begin, end, sums, coming, next_x);
            } else {
                block_by_strip<R, FOUR_BITS, true>(p, a, m0, panel, w, begin, end, sums, coming, next_x);
            }
        }
    }
}

// Rows that are done in one pass over a panel, with no sums that wait. Of bytes three rows already do better in blocks.
template <bool FOUR_BITS>
constexpr int64_t STREAMED = FOUR_BITS ? STREAMED_ROWS : 2;

template <bool FOUR_BITS>
inline void by_vectors(const QuantizedProduct& p, const Activations& a) {
    const int64_t panels = p.panels();
    if (p.M <= STREAMED<FOUR_BITS>)
        return with_constant<1, STREAMED<FOUR_BITS>>(p.M, [&](auto rows) {
            parallel_for(panels, [&](int64_t panel) {
                few_rows_by_vectors<rows, FOUR_BITS>(p, a, panel, p.panel(std::min<int64_t>(panel + team.threads, panels - 1)));
            });
        });
    with_constant<STREAMED<FOUR_BITS>, MOST_STRIP_ROWS>(a.tile_rows, [&](auto constant) {
        constexpr int R = constant;
        const int64_t rows = rows_at_once(R, a.steps * STEP_8), pieces = (p.M + rows - 1) / rows * panels;
        parallel_for_runs(pieces, PANELS_AT_ONCE, [&](int64_t begin, int64_t end) {
            for (int64_t piece = begin; piece < end; piece++) {
                const int64_t m0 = piece / panels * rows, m1 = std::min(m0 + rows, p.M), panel = piece % panels;
                open_added_in_run(p.in_sums, piece == begin, panel, std::min(panel + end - piece, panels), m0, m1);
                strips_by_panel<R, FOUR_BITS>(p, a, m0, m1, panel, p.panel((piece + 1) % panels));
            }
        });
    });
}

}  // namespace pagoda

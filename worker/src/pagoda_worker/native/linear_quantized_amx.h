// The same products on AMX: 16 rows by 64 inputs by 16 columns in one instruction. Included by linear_quantized.h.
#pragma once

namespace pagoda {

constexpr int64_t ROWS_BYTES = 3 << 19;  // of a block of x that stays in L2 while all panels pass by

// A group of inputs is whole tiles, or half of one.
inline bool tiles_serve(const QuantizedProduct& p) {
    return p.groups == 1 || p.group() % STEP_8 == 0 || p.group() == STEP_8 / 2;
}

// As TileShape, for tiles that are `depth` inputs deep.
inline TileShape shape_of(int64_t rows_of_x, int64_t depth) {
    TileShape shape(rows_of_x);
    shape.column_bytes[4] = shape.column_bytes[5] = uint16_t(depth);
    shape.rows[6] = shape.rows[7] = uint8_t(depth / 4);
    return shape;
}

// A panel in four bits as tiles of signed bytes, zero points taken off: worth it before many rows, whose sums then need no correction.
inline void open_panel(const QuantizedProduct& p, int64_t panel, uint8_t* to) {
    const uint8_t* from = p.panel(panel);
    int64_t quads = p.group() / 4, quad = 0;
    for (int64_t group = 0; group < p.groups; group++) {
        Raw low = _mm512_set1_epi8(8), high = low;
        if (const uint8_t* zeros = p.zeros_of(panel, group)) {
            Raw four_times = _mm512_set1_epi32(0x01010101);
            low = _mm512_mullo_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros))), four_times);
            high = _mm512_mullo_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros + 16))), four_times);
        }
        for (int64_t end = quad + quads; quad < end; quad++) {
            Raw both = load_bytes(from + quad * 64);
            uint8_t* tile = to + quad / 16 * 2 * TILE_8 + quad % 16 * 64;
            _mm512_store_si512(tile, _mm512_sub_epi8(low_nibbles(both), low));
            _mm512_store_si512(tile + TILE_8, _mm512_sub_epi8(high_nibbles(both), high));
        }
    }
}

// A group's sums of integers that wait to be scaled and added, a row at a time, while the next tiles are multiplied: as Waiting of linear_amx.h.
template <bool FOUR_BITS>
struct Pending {
    const int32_t* dots = nullptr;  // [rows, 32]
    float* totals = nullptr;        // [rows, 32]
    int64_t m = 0, panel = 0, group = 0, row = 0, rows = 0;

    void add_rows(const QuantizedProduct& p, const Activations& a, int64_t most) {
        if (row >= rows) return;
        const uint8_t* zeros = p.zeros_of(panel, group);
        const float* scales = p.scales_of(panel, group);
        V zero[2] = {zeros_at(zeros, 0), zeros_at(zeros, W)}, scale[2] = {load(scales), load(scales + W)};
        bool last = group + 1 == p.groups;
        for (; most > 0 && row < rows; most--, row++) {
            float* total = totals + row * PANEL;
            float sum_of_x = a.sums[(m + row) * p.groups + group];
            V unit = broadcast(last ? a.scales[m + row] : 1.0f);
            for (int c = 0; c < 2; c++) {
                V before = group == 0 ? broadcast(0.0f) : load(total + c * W);
                Raw dot = load_whole(dots + row * PANEL + c * W);
                V sum = add_group<FOUR_BITS>(before, dot, zero[c], sum_of_x, scale[c]);
                store(total + c * W, last ? sum * unit : sum);
            }
            if (last) finish(p, total, m + row, 1, panel);
        }
    }
};

// Rows of x are loaded past L1, where the weight stays while strip after strip of x passes by.
template <bool SIGNED>
inline void multiply_tiles(const int8_t* upper, const int8_t* lower, const uint8_t* weights) {
    _tile_loadd(6, weights, 64);
    _tile_stream_loadd(4, upper, 64);
    _tile_loadd(7, weights + TILE_8, 64);
    _tile_stream_loadd(5, lower, 64);
    if (SIGNED) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    } else {
        _tile_dpbsud(0, 4, 6);
        _tile_dpbsud(1, 4, 7);
        _tile_dpbsud(2, 5, 6);
        _tile_dpbsud(3, 5, 7);
    }
}

inline void store_dots(int32_t* dots) { store_sums(reinterpret_cast<float*>(dots)); }

// The lines of what this thread multiplies next, most likely, from memory to L2, a few a step.
struct Following {
    const uint8_t* at = nullptr;
    int64_t lines = 0;

    // Panel `panel` of `p`, in `steps` steps.
    Following(const QuantizedProduct& p, int64_t panel, int64_t steps) {
        int64_t all = (p.panel(1) - p.panel(0)) / 64;
        if (panel < p.panels()) at = p.panel(panel), lines = (all + steps - 1) / steps;
    }
    void ask() {
        prefetch_to_l2(at, lines);
        at += lines * 64;
    }
};

}  // namespace pagoda

#include "linear_int8_amx.h"

namespace pagoda {

// 64 inputs of a panel in four bits → the two tiles of eight.
inline void unpack_step(const uint8_t* from, uint8_t* to) {
    for (int64_t i = 0; i < TILE_8; i += 64) {
        Raw both = load_bytes(from + i);
        _mm512_store_si512(to + i, low_nibbles(both));
        _mm512_store_si512(to + TILE_8 + i, high_nibbles(both));
    }
}

// At most 16 rows, one panel in four bits. The next step is unpacked while this one is multiplied.
inline void few_rows_by_four(const QuantizedProduct& p, const Activations& a, int64_t panel, const uint8_t* next) {
    int64_t depth = std::min(STEP_8, p.group()), steps_a_group = p.group() / depth, at = 0;
    alignas(64) uint8_t tiles[2][2 * TILE_8];
    alignas(64) int32_t dots[2][16 * PANEL];
    alignas(64) float totals[16 * PANEL];
    const uint8_t* w = p.panel(panel);
    unpack_step(w, tiles[0]);
    Pending<true> pending;
    for (int64_t group = 0; group < p.groups; group++) {
        _tile_zero(0);
        _tile_zero(1);
        for (int64_t step = 0; step < steps_a_group; step++, at += depth) {
            int64_t whole = at / STEP_8;
            const uint8_t* tile = tiles[whole % 2] + at % STEP_8 * 16;
            if (at % STEP_8 == 0 && whole + 1 < a.steps) {
                prefetch_to_l1(whole + 3 < a.steps ? w + (whole + 3) * TILE_8 : next + (whole + 3 - a.steps) * TILE_8, 16);
                unpack_step(w + (whole + 1) * TILE_8, tiles[(whole + 1) % 2]);
            }
            _tile_loadd(4, a.values + whole * TILE_8 + at % STEP_8, 64);
            _tile_loadd(6, tile, 64);
            _tile_dpbsud(0, 4, 6);
            _tile_loadd(7, tile + TILE_8, 64);
            _tile_dpbsud(1, 4, 7);
        }
        pending.add_rows(p, a, 16);
        _tile_stored(0, dots[group % 2], PANEL * 4);
        _tile_stored(1, dots[group % 2] + 16, PANEL * 4);
        pending = {dots[group % 2], totals, 0, panel, group, 0, p.M};
    }
    pending.add_rows(p, a, 16);
}

// Rows of a strip whose sums of one group wait, as ScaledRows: they are added up in float, and end with the last group.
template <class T, int EPILOGUE>
struct GroupedRows {
    const QuantizedProduct& p;
    const Activations& a;
    int64_t panel;
    PanelEnd<T, EPILOGUE> end;
    alignas(64) float totals[32 * PANEL];
    const int32_t* dots = nullptr;  // [32, 32]
    int64_t m = 0, group = 0, row = 0, rows = 0;

    GroupedRows(const QuantizedProduct& p, const Activations& a, int64_t panel) : p(p), a(a), panel(panel), end(p, panel) {}

    void finish(int64_t most) {
        if (row >= rows) return;
        const float* scales = p.scales_of(panel, group);
        V scale[2] = {load(scales), load(scales + W)};
        bool first = group == 0, last = group + 1 == p.groups;
        for (; most > 0 && row < rows; most--, row++) {
            float* total = totals + row * PANEL;
            V unit = broadcast(last ? a.scales[m + row] : 1.0f), sums[2];
            for (int c = 0; c < 2; c++)
                sums[c] = fma(to_floats(load_whole(dots + row * PANEL + c * W)), scale[c], first ? broadcast(0.0f) : load(total + c * W)) * unit;
            if (last && end.whole) {
                end.row(m + row, sums[0], sums[1]);
                continue;
            }
            store(total, sums[0]);
            store(total + W, sums[1]);
            if (last) pagoda::finish(p, total, m + row, 1, panel);
        }
    }
};

// Rows m0 … of x, whole strips of 32, by one panel in four bits, opened first.
template <class T, int EPILOGUE>
inline void rows_by_panel_of_four(const QuantizedProduct& p, const Activations& a, int64_t m0, int64_t rows, int64_t panel, int64_t ahead) {
    int64_t depth = std::min(STEP_8, p.group()), steps_a_group = p.group() / depth;
    int64_t strips = (rows + 31) / 32, rows_a_step = (31 + steps_a_group) / steps_a_group, which = 0;
    uint8_t* open = own_scratch(a.steps * 2 * TILE_8);
    open_panel(p, panel, open);
    alignas(4096) int32_t dots[2][32 * PANEL];
    Following following(p, ahead, strips * a.steps);
    GroupedRows<T, EPILOGUE> waiting(p, a, panel);
    for (int64_t strip = 0; strip < strips; strip++) {
        int64_t m = m0 + strip * 32, there = std::min<int64_t>(32, p.M - m), at = 0;
        const int8_t *upper = a.row(m), *lower = a.row(m + 16);
        for (int64_t group = 0; group < p.groups; group++, which ^= 1) {
            zero_sums();
            for (int64_t step = 0; step < steps_a_group; step++, at += depth) {
                int64_t whole = at / STEP_8 * TILE_8, part = at % STEP_8;
                following.ask();
                multiply_tiles<true>(upper + whole + part, lower + whole + part, open + 2 * whole + part * 16);
                waiting.finish(rows_a_step);
                if (group == 0) waiting.end.ask(m + step * rows_a_step, m + std::min(there, (step + 1) * rows_a_step));
            }
            waiting.finish(32);
            store_dots(dots[which]);
            waiting.dots = dots[which], waiting.m = m, waiting.group = group, waiting.row = 0, waiting.rows = there;
        }
    }
    waiting.finish(32);
}

// A block of rows by some panels.
template <class T, int EPILOGUE>
inline void rows_by_panels(const QuantizedProduct& p, const Activations& a, int64_t m0, int64_t rows, int64_t panel0, int64_t panel1) {
    configure(shape_of(16, std::min(STEP_8, p.group())));
    for (int64_t panel = panel0; panel < panel1; panel++) {
        int64_t ahead = panel + 1 < panel1 ? panel + 1 : panel0 + GROUP * team.threads;
        p.four_bits ? rows_by_panel_of_four<T, EPILOGUE>(p, a, m0, rows, panel, ahead)
                    : rows_by_panel_of_eight<T, EPILOGUE>(p, a, m0, rows, panel, ahead);
    }
    _tile_release();
}

// Blocks of rows of one size, so that none is too small for its weights to come in time.
inline void many_rows_by_tiles(const QuantizedProduct& p, const Activations& a) {
    int64_t most = std::max<int64_t>(64, ROWS_BYTES / (a.steps * STEP_8)), blocks = (p.M + most - 1) / most;
    int64_t block = ((p.M + blocks - 1) / blocks + 31) / 32 * 32;
    for (int64_t m0 = 0; m0 < p.M; m0 += block) {
        parallel_for((p.panels() + GROUP - 1) / GROUP, [&](int64_t i) {
            int64_t panel = i * GROUP, end = std::min(panel + GROUP, p.panels()), rows = std::min(block, p.M - m0);
            for_epilogue(p.epilogue, [&](auto epilogue) {
                constexpr int E = decltype(epilogue)::value;
                p.wide ? rows_by_panels<float, E>(p, a, m0, rows, panel, end) : rows_by_panels<bf16, E>(p, a, m0, rows, panel, end);
            });
        });
    }
}

inline void by_tiles(const QuantizedProduct& p, const Activations& a) {
    if (p.M > 16) return many_rows_by_tiles(p, a);
    parallel_for_runs(p.panels(), RUN, [&](int64_t panel, int64_t end) {
        configure(shape_of(p.M, std::min(STEP_8, p.group())));
        for (; panel < end; panel++) {
            const uint8_t* next = p.panel(std::min(panel + 1, p.panels() - 1));
            p.four_bits ? few_rows_by_four(p, a, panel, next) : few_rows_by_eight(p, a, panel, next);
        }
        _tile_release();
    });
}

}  // namespace pagoda

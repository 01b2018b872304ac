// The same products on AMX: 16 rows by 64 inputs by 16 columns in one instruction. Included by linear_quantized.h.
#pragma once

namespace pagoda {

constexpr int64_t ROWS_BYTES = 1 << 20;  // of a block of x that stays in L2 while all panels pass by

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

// 64 inputs of a panel in four bits → the two tiles of eight.
inline void unpack_step(const uint8_t* from, uint8_t* to) {
    for (int64_t i = 0; i < TILE_8; i += 64) {
        Raw both = load_bytes(from + i);
        _mm512_store_si512(to + i, low_nibbles(both));
        _mm512_store_si512(to + TILE_8 + i, high_nibbles(both));
    }
}

inline void prefetch_lines(const uint8_t* at, int64_t lines) {
    for (int64_t i = 0; i < lines; i++) _mm_prefetch(reinterpret_cast<const char*>(at + i * 64), _MM_HINT_T0);
}
inline void prefetch_lines_to_l2(const uint8_t* at, int64_t lines) {
    for (int64_t i = 0; i < lines; i++) _mm_prefetch(reinterpret_cast<const char*>(at + i * 64), _MM_HINT_T1);
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

enum Form { EIGHT, FOUR, FOUR_OPENED };  // opened: signed, see open_panel

// A group's sums of integers that wait to be scaled and added, a row at a time, while the next tiles are multiplied: as Waiting of linear_amx.h.
template <Form FORM>
struct Pending {
    const int32_t* dots = nullptr;  // [rows, 32]
    float* totals = nullptr;        // [rows, 32]
    int64_t m = 0, panel = 0, group = 0, row = 0, rows = 0;
    const float* added = nullptr;  // [rows, 32] by adapters, of the last group

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
                V sum = FORM == FOUR_OPENED ? fma(to_floats(dot), scale[c], before)
                                            : add_group<FORM == FOUR>(before, dot, zero[c], sum_of_x, scale[c]);
                if (last) sum = added ? fma(sum, unit, load(added + row * PANEL + c * W)) : sum * unit;
                store(total + c * W, sum);
            }
            if (last) finish(p, total, m + row, 1, panel);
        }
    }
};

// What adapters add to rows m … of a panel, into `to`; null: nothing. The tiles are as shape_of(p.M, depth) before and after.
inline const float* added_to(const QuantizedProduct& p, int64_t m, int64_t panel, int64_t depth, float* to) {
    if (!p.added) return nullptr;
    if (depth != STEP_8) configure(TileShape(p.M));
    added_sums(*p.added, m / STRIP, panel, p.M > 16, to);
    if (depth != STEP_8) configure(shape_of(p.M, depth));
    return to;
}

// At most 16 rows, two panels in eight bits: each weight is read once and used at once.
inline void few_rows_by_eight(const QuantizedProduct& p, const Activations& a, int64_t panel, bool second) {
    configure(shape_of(p.M, STEP_8));
    const int8_t* x = a.values;
    const uint8_t *w = p.panel(panel), *v = second ? p.panel(panel + 1) : w;
    zero_sums();
    for (int64_t step = 0; step < a.steps; step++, x += TILE_8, w += 2 * TILE_8, v += 2 * TILE_8) {
        prefetch_lines(w + AHEAD * 2 * TILE_8, 32);
        if (second) prefetch_lines(v + AHEAD * 2 * TILE_8, 32);
        _tile_loadd(4, x, 64);
        _tile_loadd(6, w, 64);
        _tile_dpbsud(0, 4, 6);
        _tile_loadd(7, w + TILE_8, 64);
        _tile_dpbsud(1, 4, 7);
        if (second) {
            _tile_loadd(6, v, 64);
            _tile_dpbsud(2, 4, 6);
            _tile_loadd(7, v + TILE_8, 64);
            _tile_dpbsud(3, 4, 7);
        }
    }
    alignas(64) int32_t dots[2][16 * PANEL];
    alignas(64) float totals[16 * PANEL], more[16 * PANEL];
    _tile_stored(0, dots[0], PANEL * 4);
    _tile_stored(1, dots[0] + 16, PANEL * 4);
    _tile_stored(2, dots[1], PANEL * 4);
    _tile_stored(3, dots[1] + 16, PANEL * 4);
    Pending<EIGHT>{dots[0], totals, 0, panel, 0, 0, p.M, added_to(p, 0, panel, STEP_8, more)}.add_rows(p, a, p.M);
    if (second) Pending<EIGHT>{dots[1], totals, 0, panel + 1, 0, 0, p.M, added_to(p, 0, panel + 1, STEP_8, more)}.add_rows(p, a, p.M);
    _tile_release();
}

// At most 16 rows, one panel in four bits. The next step is unpacked while this one is multiplied.
inline void few_rows_by_four(const QuantizedProduct& p, const Activations& a, int64_t panel) {
    int64_t depth = std::min(STEP_8, p.group()), steps_a_group = p.group() / depth, at = 0;
    configure(shape_of(p.M, depth));
    alignas(64) uint8_t tiles[2][2 * TILE_8];
    alignas(64) int32_t dots[2][16 * PANEL];
    alignas(64) float totals[16 * PANEL], more[16 * PANEL];
    const uint8_t* w = p.panel(panel);
    unpack_step(w, tiles[0]);
    Pending<FOUR> pending;
    for (int64_t group = 0; group < p.groups; group++) {
        _tile_zero(0);
        _tile_zero(1);
        for (int64_t step = 0; step < steps_a_group; step++, at += depth) {
            int64_t whole = at / STEP_8;
            const uint8_t* tile = tiles[whole % 2] + at % STEP_8 * 16;
            if (at % STEP_8 == 0 && whole + 1 < a.steps) {
                prefetch_lines(w + (whole + 1 + 2 * AHEAD) * TILE_8, 16);
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
        pending = {dots[group % 2], totals, 0, panel, group, 0, p.M, group + 1 == p.groups ? added_to(p, 0, panel, depth, more) : nullptr};
    }
    pending.add_rows(p, a, 16);
    _tile_release();
}

template <bool SIGNED>
inline void multiply_tiles(const int8_t* upper, const int8_t* lower, const uint8_t* weights) {
    _tile_loadd(6, weights, 64);
    _tile_loadd(4, upper, 64);
    _tile_loadd(7, weights + TILE_8, 64);
    _tile_loadd(5, lower, 64);
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

// Rows m0 … of x, whole strips of 32, by the panels [panel0, panel1).
template <bool FOUR_BITS>
inline void rows_by_panels(const QuantizedProduct& p, const Activations& a, int64_t m0, int64_t rows, int64_t panel0, int64_t panel1) {
    int64_t depth = std::min(STEP_8, p.group()), steps_a_group = p.group() / depth, count = panel1 - panel0;
    int64_t strips = (rows + 31) / 32, bytes = p.panel(1) - p.panel(0);
    const uint8_t* weights = p.panel(panel0);
    if (FOUR_BITS) {
        uint8_t* open = own_scratch(count * 2 * bytes);
        for (int64_t i = 0; i < count; i++) open_panel(p, panel0 + i, open + i * 2 * bytes);
        weights = open;
    }
    configure(shape_of(16, depth));
    alignas(4096) int32_t dots[2][32 * PANEL];
    alignas(64) float totals[2][32 * PANEL], more[2][32 * PANEL];
    // What this thread multiplies next, most likely: its lines come from memory to L2, a few a step.
    int64_t ahead = panel0 + count * team.threads, lines = 0, all_steps = strips * count * a.steps, which = 0, step_in_all = 0;
    if (ahead + count <= p.panels()) lines = (count * bytes / 64 + all_steps - 1) / all_steps;
    const uint8_t* next = lines ? p.panel(ahead) : weights;
    Pending<FOUR_BITS ? FOUR_OPENED : EIGHT> pending;
    int64_t rows_a_step = (31 + steps_a_group) / steps_a_group;
    for (int64_t strip = 0; strip < strips; strip++) {
        int64_t m = m0 + strip * 32, there = std::min<int64_t>(32, p.M - m);
        const int8_t *upper = a.row(m), *lower = a.row(m + 16);
        for (int64_t panel = panel0; panel < panel1; panel++) {
            const uint8_t* w = weights + (panel - panel0) * a.steps * 2 * TILE_8;
            float* total = totals[(strip * count + panel) % 2];
            int64_t at = 0;
            for (int64_t group = 0; group < p.groups; group++, which ^= 1) {
                zero_sums();
                for (int64_t step = 0; step < steps_a_group; step++, at += depth, step_in_all++) {
                    pending.add_rows(p, a, rows_a_step);
                    int64_t whole = at / STEP_8 * TILE_8, part = at % STEP_8;
                    const uint8_t* tile = w + 2 * whole + part * 16;
                    // Stores of tiles that come seldom wait for long, see linear_amx.h.
                    if (!FOUR_BITS && step % 8 == 4) _tile_stored(0, dots[which], 0);
                    if (!FOUR_BITS && strip == 0) prefetch_lines(tile + AHEAD * 2 * TILE_8, 32);
                    if (lines) prefetch_lines_to_l2(next + step_in_all * lines * 64, lines);
                    if (lines && p.added) p.added->prefetch(m / STRIP, ahead + panel - panel0, at / depth, a.steps * (STEP_8 / depth));
                    multiply_tiles<FOUR_BITS>(upper + whole + part, lower + whole + part, tile);
                }
                pending.add_rows(p, a, 32);
                _tile_stored(0, dots[which], PANEL * 4);
                _tile_stored(1, dots[which] + 16, PANEL * 4);
                _tile_stored(2, dots[which] + 16 * PANEL, PANEL * 4);
                _tile_stored(3, dots[which] + 16 * PANEL + 16, PANEL * 4);
                const float* added = group + 1 == p.groups ? added_to(p, m, panel, depth, more[which]) : nullptr;
                pending = {dots[which], total, m, panel, group, 0, there, added};
            }
        }
    }
    pending.add_rows(p, a, 32);
    _tile_release();
}

template <bool FOUR_BITS>
inline void many_rows_by_tiles(const QuantizedProduct& p, const Activations& a) {
    int64_t block = std::max<int64_t>(64, ROWS_BYTES / (a.steps * STEP_8) / 32 * 32);
    for (int64_t m0 = 0; m0 < p.M; m0 += block) {
        parallel_for((p.panels() + GROUP - 1) / GROUP, [&](int64_t i) {
            rows_by_panels<FOUR_BITS>(p, a, m0, std::min(block, p.M - m0), i * GROUP, std::min((i + 1) * GROUP, p.panels()));
        });
    }
}

inline void by_tiles(const QuantizedProduct& p, const Activations& a) {
    if (p.M > 16) {
        p.four_bits ? many_rows_by_tiles<true>(p, a) : many_rows_by_tiles<false>(p, a);
    } else if (p.four_bits) {
        parallel_for((p.panels() + 1) / 2, [&](int64_t i) {
            for (int64_t panel = 2 * i; panel < std::min(2 * i + 2, p.panels()); panel++) few_rows_by_four(p, a, panel);
        });
    } else {
        parallel_for((p.panels() + 1) / 2, [&](int64_t i) { few_rows_by_eight(p, a, 2 * i, 2 * i + 1 < p.panels()); });
    }
}

}  // namespace pagoda

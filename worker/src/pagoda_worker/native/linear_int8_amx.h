// Products of weights in eight bits on AMX. Included by linear_quantized_amx.h.
#pragma once

namespace pagoda {

// At most 16 rows, one panel in eight bits: each weight is read once and used at once. As few_rows of linear_amx.h.
inline void few_rows_by_eight(const QuantizedProduct& p, const Activations& a, int64_t panel, const uint8_t* next) {
    const int8_t* x = a.values;
    const uint8_t* w = p.panel(panel);
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t step = 0; step < a.steps; step++, x += TILE_8, w += 2 * TILE_8) {
        const uint8_t* soon = step + AHEAD < a.steps ? w + AHEAD * 2 * TILE_8 : next + (step + AHEAD - a.steps) * 2 * TILE_8;
        _tile_loadd(4, x, 64);
        prefetch_to_l1(soon, 16);
        _tile_loadd(6, w, 64);
        _tile_dpbsud(0, 4, 6);
        prefetch_to_l1(soon + TILE_8, 16);
        _tile_loadd(7, w + TILE_8, 64);
        _tile_dpbsud(1, 4, 7);
    }
    alignas(64) int32_t dots[16 * PANEL];
    alignas(64) float totals[16 * PANEL];
    _tile_stored(0, dots, PANEL * 4);
    _tile_stored(1, dots + 16, PANEL * 4);
    Pending<false>{dots, totals, 0, panel, 0, 0, p.M}.add_rows(p, a, p.M);
}

// Rows of a strip that wait to be scaled and written, a few at a time, while the tiles of the next strip are multiplied: done at once, the same
// work leaves the tile unit idle. What all rows of a panel share is in registers.
template <class T, int EPILOGUE>
struct ScaledRows {
    const Activations& a;
    PanelEnd<T, EPILOGUE> end;
    V scale[2];
    const int32_t* dots = nullptr;  // [32, 32]
    int64_t m = 0, row = 0, rows = 0;

    ScaledRows(const QuantizedProduct& p, const Activations& a, int64_t panel)
        : a(a), end(p, panel), scale{load(p.scales_of(panel, 0)), load(p.scales_of(panel, 0) + W)} {}

    void finish(int64_t most) {
        for (; most > 0 && row < rows; most--, row++) {
            Raw weights_are_unsigned = _mm512_slli_epi32(_mm512_cvtps_epi32(broadcast(a.sums[m + row])), 7);
            V unit = broadcast(a.scales[m + row]), sums[2];
            for (int c = 0; c < 2; c++)
                sums[c] = fma(to_floats(less(load_whole(dots + row * PANEL + c * W), weights_are_unsigned)), scale[c], broadcast(0.0f)) * unit;
            end.row(m + row, sums[0], sums[1]);
        }
    }
};

// Rows m0 … of x, whole strips of 32, by one panel in eight bits, L1_STEPS of k at a time. Sums of whole numbers wait in `partial` in between.
template <class T, int EPILOGUE>
inline void rows_by_panel_of_eight(const QuantizedProduct& p, const Activations& a, int64_t m0, int64_t rows, int64_t panel, int64_t ahead) {
    alignas(4096) int32_t dots[32 * PANEL];
    alignas(64) int32_t nowhere[16];
    int64_t strips = (rows + 31) / 32;
    auto partial = reinterpret_cast<int32_t*>(a.steps > L1_STEPS ? own_scratch(strips * 32 * PANEL * 4) : nullptr);
    Following following(p, ahead, strips * a.steps);
    ScaledRows<T, EPILOGUE> waiting(p, a, panel);
    for (int64_t begin = 0; begin < a.steps; begin += L1_STEPS) {
        int64_t end = std::min(begin + L1_STEPS, a.steps), rows_a_step = (31 + end - begin) / (end - begin);
        for (int64_t strip = 0; strip < strips; strip++) {
            int64_t m = m0 + strip * 32, there = std::min<int64_t>(32, p.M - m);
            int32_t* sums = partial + strip * 32 * PANEL;
            const int8_t *upper = a.row(m) + begin * TILE_8, *lower = a.row(m + 16) + begin * TILE_8;
            const uint8_t* w = p.panel(panel) + begin * 2 * TILE_8;
            if (begin == 0) {
                zero_sums();
            } else {
                load_sums(reinterpret_cast<const float*>(sums));
            }
            for (int64_t step = begin; step < end; step++, upper += TILE_8, lower += TILE_8, w += 2 * TILE_8) {
                // Stores of tiles that come seldom wait for long, see linear_amx.h.
                if (step % 8 == 4) _tile_stored(0, nowhere, 0);
                if (strip == 0) prefetch_to_l1(w + 2 * TILE_8, 32);
                following.ask();
                multiply_tiles<false>(upper, lower, w);
                waiting.finish(rows_a_step);
                if (end == a.steps) waiting.end.ask(m + (step - begin) * rows_a_step, m + std::min(there, (step - begin + 1) * rows_a_step));
            }
            store_dots(end == a.steps ? dots : sums);
            if (end < a.steps) continue;
            if (waiting.end.whole) {
                waiting.dots = dots, waiting.m = m, waiting.row = 0, waiting.rows = there;
            } else {
                alignas(64) float totals[32 * PANEL];
                Pending<false>{dots, totals, m, panel, 0, 0, there}.add_rows(p, a, 32);
            }
        }
    }
    waiting.finish(32);
}

}  // namespace pagoda

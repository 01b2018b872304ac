// The same product on AMX: 16 x 32 by 32 x 16 in one instruction. Included by linear.h.
#pragma once

namespace pagoda {

constexpr int64_t BLOCK_ROWS = 512;  // rows and
constexpr int64_t BLOCK_STEPS = 32;  // steps of k of a block of x: 1 MB, half of a core's L2
constexpr int64_t L1_STEPS = 16;     // steps of k that a panel's 32 KB stay in L1 for, while strip after strip of x passes by
constexpr int64_t GROUP = 2;         // panels of one piece of work: two threads that write neighbouring lines of y take them from each other
constexpr int64_t RUN = 4;           // panels that a thread reads on through with few rows
constexpr int64_t AHEAD = 1;         // steps that the weight is asked for before it is needed, where it comes from memory

struct TileShape {
    uint8_t palette = 1, start = 0, unused[14] = {};
    uint16_t column_bytes[16] = {};
    uint8_t rows[16] = {};

    // Tiles 0-3 sum, 4-5 hold rows of x, 6-7 (with few rows 5-7) columns of the weight.
    explicit TileShape(int64_t rows_of_x) {
        for (int i = 0; i < 8; i++) column_bytes[i] = 64, rows[i] = 16;
        if (rows_of_x < 16) rows[0] = rows[1] = rows[2] = rows[3] = rows[4] = uint8_t(rows_of_x);
    }
};

// Not _tile_loadconfig, of which the compiler believes that it reads eight bytes.
inline void configure(const TileShape& shape) { asm volatile("ldtilecfg %0" ::"m"(shape)); }

inline void zero_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}
// 32 rows by 32 columns.
inline void load_sums(const float* sums) {
    _tile_loadd(0, sums, PANEL * 4);
    _tile_loadd(1, sums + 16, PANEL * 4);
    _tile_loadd(2, sums + 16 * PANEL, PANEL * 4);
    _tile_loadd(3, sums + 16 * PANEL + 16, PANEL * 4);
}
inline void store_sums(float* sums) {
    _tile_stored(0, sums, PANEL * 4);
    _tile_stored(1, sums + 16, PANEL * 4);
    _tile_stored(2, sums + 16 * PANEL, PANEL * 4);
    _tile_stored(3, sums + 16 * PANEL + 16, PANEL * 4);
}

inline void prefetch_to_l1(const void* at, int lines) {
    for (int i = 0; i < lines; i++) _mm_prefetch(static_cast<const char*>(at) + i * 64, _MM_HINT_T0);
}
inline void prefetch_to_l2(const void* at, int64_t lines) {
    for (int64_t i = 0; i < lines; i++) _mm_prefetch(static_cast<const char*>(at) + i * 64, _MM_HINT_T1);
}

}  // namespace pagoda
#include "adapters_in_tiles.h"
namespace pagoda {

// At most 16 rows, one panel: each weight is read once and used at once. Asked for, a few lines between tiles, is what comes AHEAD of it,
// behind the panel's end the beginning of `next`.
inline void few_rows(const Product& p, int64_t panel, const bf16* next) {
    const bf16 *x = p.x, *w = p.panel(panel);
    int64_t stride = p.ldx * 2, steps = p.steps();
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t step = 0; step < steps; step++, x += STEP_K, w += 2 * TILE) {
        const bf16* soon = step + AHEAD < steps ? w + AHEAD * 2 * TILE : next + (step + AHEAD - steps) * 2 * TILE;
        _tile_loadd(4, x, stride);
        prefetch_to_l1(soon, 16);
        _tile_loadd(5, w, 64);
        _tile_dpbf16ps(0, 4, 5);
        prefetch_to_l1(soon + TILE, 16);
        _tile_loadd(6, w + TILE, 64);
        _tile_dpbf16ps(1, 4, 6);
    }
    alignas(64) float sums[16 * PANEL];
    if (p.added) add_to_sums(*p.added, 0, panel);
    _tile_stored(0, sums, PANEL * 4);
    _tile_stored(1, sums + 16, PANEL * 4);
    finish(p, sums, 0, p.M, panel);
}

// A block of x, [rows, steps], tile after tile: [rows / 16][steps][16][32]. Rows past the end are zeros.
inline void pack_rows(const Product& p, int64_t m0, int64_t rows, int64_t step0, int64_t steps, bf16* packed) {
    parallel_for((rows + 15) / 16, [&](int64_t strip) {
        for (int64_t r = 0; r < 16; r++) {
            int64_t m = m0 + strip * 16 + r;
            bf16* to = packed + strip * steps * TILE + r * STEP_K;
            const bf16* from = p.x + m * p.ldx + step0 * STEP_K;
            for (int64_t s = 0; s < steps; s++, to += TILE, from += STEP_K)
                _mm512_store_si512(to, m < p.M ? _mm512_loadu_si512(from) : _mm512_setzero_si512());
        }
    });
}

// What becomes of a row's sums of one whole panel, as `finish`. What all rows share is in registers; adding -0 changes nothing.
template <class T, int EPILOGUE>
struct PanelEnd {
    bool whole;  // else it is for `finish`
    V bias[2] = {broadcast(-0.0f), broadcast(-0.0f)};
    const T* residual = nullptr;
    T* y;
    int64_t ldy;

    template <class AnyProduct>
    PanelEnd(const AnyProduct& p, int64_t panel)
        : whole((panel + 1) * PANEL <= p.N), y(static_cast<T*>(p.y) + panel * PANEL / (EPILOGUE == SILU_MUL ? 2 : 1)), ldy(p.ldy) {
        if (auto from = static_cast<const T*>(p.bias); from && whole) bias[0] = load(from + panel * PANEL), bias[1] = load(from + panel * PANEL + W);
        if (EPILOGUE == ADD) residual = static_cast<const T*>(p.residual) + panel * PANEL;
    }
    // Lines of y come from afar, all rows' in one set of L1: asked for while the tiles of their strip are multiplied.
    void ask(int64_t m, int64_t end) const {
        for (; m < end; m++) {
            __builtin_prefetch(y + m * ldy, 1);
            if (EPILOGUE == ADD) __builtin_prefetch(residual + m * ldy);
        }
    }
    void row(int64_t m, V first, V second) const {
        first += bias[0], second += bias[1];
        if (EPILOGUE == SILU_MUL) return store(y + m * ldy, silu(first) * second);
        if (EPILOGUE == ADD) first += load(residual + m * ldy), second += load(residual + m * ldy + W);
        store(y + m * ldy, first);
        store(y + m * ldy + W, second);
    }
};

// body(std::integral_constant) of an epilogue.
template <class Body>
inline void for_epilogue(int epilogue, const Body& body) {
    if (epilogue == SILU_MUL) return body(std::integral_constant<int, SILU_MUL>());
    if (epilogue == ADD) return body(std::integral_constant<int, ADD>());
    body(std::integral_constant<int, PLAIN>());
}

// Rows of one strip and panel that wait to be rounded and written, a few at a time, while the tiles of the next are multiplied: done at once,
// the same work leaves the tile unit idle for a third of the time.
template <int EPILOGUE>
struct Waiting {
    PanelEnd<bf16, EPILOGUE> end;
    const float* sums = nullptr;  // [32, 32]
    int64_t m = 0, row = 0, rows = 0;

    void finish(int64_t most) {
        for (; most > 0 && row < rows; most--, row++) end.row(m + row, load(sums + row * PANEL), load(sums + row * PANEL + W));
    }
};

// A block of x by one panel, L1_STEPS of k at a time. Rows of x are loaded past L1, where the weight stays. `partial` [rows, 32] holds the sums
// in between, and comes in and goes out unless this is the first or the last block of k.
template <int EPILOGUE>
inline void block_by_panel(const Product& p, const bf16* packed, int64_t m0, int64_t rows, int64_t step0, int64_t steps, int64_t panel,
                           float* partial) {
    alignas(4096) float own[32 * PANEL];
    alignas(64) float nowhere[16];
    int64_t strips = (rows + 31) / 32;
    Waiting<EPILOGUE> waiting{PanelEnd<bf16, EPILOGUE>(p, panel)};
    // The panel that this thread takes next, most likely: its lines come from memory to L2, a few a step, while this one is multiplied.
    int64_t ahead = panel + (panel % GROUP + 1 < GROUP ? 1 : GROUP * (team.threads - 1) + 1), lines = (31 + strips) / strips;
    const bf16* next = ahead < p.panels() ? p.panel(ahead) + step0 * 2 * TILE : nullptr;
    for (int64_t begin = 0; begin < steps; begin += L1_STEPS) {
        int64_t end = std::min(begin + L1_STEPS, steps), rows_a_step = (31 + end - begin) / (end - begin);
        bool first = step0 + begin == 0, last = step0 + end == p.steps();
        for (int64_t strip = 0; strip < strips; strip++) {
            int64_t m = m0 + strip * 32, there = std::min<int64_t>(32, rows - strip * 32);
            float* sums = partial + strip * 32 * PANEL;
            const bf16 *upper = packed + (strip * 2 * steps + begin) * TILE, *lower = upper + steps * TILE;
            const bf16* w = p.panel(panel) + (step0 + begin) * 2 * TILE;
            if (first) {
                zero_sums();
            } else {
                load_sums(sums);
            }
            for (int64_t step = begin; step < end; step++, upper += TILE, lower += TILE, w += 2 * TILE) {
                // A store of a tile that comes 0.7 us after the one before waits for 0.25 us (seen on Sapphire Rapids): some go nowhere.
                if (step % 8 == 4) _tile_stored(0, nowhere, 0);
                if (strip == 0) prefetch_to_l1(w + 2 * TILE, 32);
                if (next) prefetch_to_l2(next, lines), next += lines * 32;
                if (last && p.added && ahead < p.panels()) p.added->prefetch(m / STRIP, ahead, step - begin, end - begin);
                _tile_loadd(6, w, 64);
                _tile_stream_loadd(4, upper, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, w + TILE, 64);
                _tile_dpbf16ps(1, 4, 7);
                _tile_stream_loadd(5, lower, 64);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
                waiting.finish(rows_a_step);
                if (last) waiting.end.ask(m + (step - begin) * rows_a_step, m + std::min(there, (step - begin + 1) * rows_a_step));
            }
            if (last && p.added) add_to_sums(*p.added, m / STRIP, panel);
            store_sums(last ? own : sums);
            if (!last) continue;
            if (waiting.end.whole) {
                waiting.sums = own, waiting.m = m, waiting.row = 0, waiting.rows = there;
            } else {
                finish(p, own, m, there, panel);
            }
        }
    }
    waiting.finish(32);
}

// Block by block of x, so that it stays in L2 while all panels pass by. Sums between blocks of k wait in float32.
inline void many_rows(const Product& p) {
    bf16* packed = static_cast<bf16*>(scratch(0, BLOCK_ROWS * BLOCK_STEPS * STEP_K * sizeof(bf16)));
    float* partial = p.steps() > BLOCK_STEPS ? static_cast<float*>(scratch(1, p.panels() * BLOCK_ROWS * PANEL * sizeof(float))) : nullptr;
    int64_t groups = (p.panels() + GROUP - 1) / GROUP;
    for (int64_t m0 = 0; m0 < p.M; m0 += BLOCK_ROWS) {
        int64_t rows = std::min(BLOCK_ROWS, p.M - m0);
        for (int64_t step0 = 0; step0 < p.steps(); step0 += BLOCK_STEPS) {
            int64_t steps = std::min(BLOCK_STEPS, p.steps() - step0);
            pack_rows(p, m0, (rows + 31) / 32 * 32, step0, steps, packed);
            parallel_for(groups, [&](int64_t i) {
                configure(TileShape(16));
                for (int64_t panel = i * GROUP; panel < std::min((i + 1) * GROUP, p.panels()); panel++) {
                    float* sums = partial + panel * BLOCK_ROWS * PANEL;
                    if (!partial) sums = reinterpret_cast<float*>(own_scratch(BLOCK_ROWS * PANEL * sizeof(float)));
                    for_epilogue(p.epilogue, [&](auto epilogue) {
                        block_by_panel<decltype(epilogue)::value>(p, packed, m0, rows, step0, steps, panel, sums);
                    });
                }
                _tile_release();
            });
        }
    }
}

inline void linear(const Product& p) {
    if (p.M <= 16) {
        parallel_for_runs(p.panels(), RUN, [&](int64_t panel, int64_t end) {
            configure(TileShape(p.M));
            for (; panel < end; panel++) few_rows(p, panel, p.panel(std::min(panel + 1, p.panels() - 1)));
            _tile_release();
        });
    } else {
        many_rows(p);
    }
}

}  // namespace pagoda

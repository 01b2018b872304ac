// The same product on AMX: 16 x 32 by 32 x 16 in one instruction. Included by linear.h.
#pragma once

namespace pagoda {

constexpr int64_t BLOCK_ROWS = 512;  // rows and
constexpr int64_t BLOCK_STEPS = 32;  // steps of k of a block of x: 1 MB, half of a core's L2
constexpr int64_t GROUP = 2;         // panels of one piece of work: two threads that write neighbouring lines of y take them from each other
constexpr int64_t AHEAD = 4;         // steps that the weight is asked for before it is needed, where it comes from memory

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

inline void prefetch_to_l1(const bf16* at, int lines) {
    for (int i = 0; i < lines; i++) _mm_prefetch(reinterpret_cast<const char*>(at + i * 32), _MM_HINT_T0);
}
inline void prefetch_to_l2(const bf16* at, int64_t lines) {
    for (int64_t i = 0; i < lines; i++) _mm_prefetch(reinterpret_cast<const char*>(at + i * 32), _MM_HINT_T1);
}

}  // namespace pagoda
#include "adapters_in_tiles.h"
namespace pagoda {

// At most 16 rows, two panels: each weight is read once and used at once.
inline void few_rows(const Product& p, int64_t panel, bool second) {
    TileShape shape(p.M);
    configure(shape);
    const bf16 *x = p.x, *a = p.panel(panel), *b = second ? p.panel(panel + 1) : a;
    int64_t stride = p.ldx * 2;
    zero_sums();
    for (int64_t step = 0; step < p.steps(); step++, x += STEP_K, a += 2 * TILE, b += 2 * TILE) {
        prefetch_to_l1(a + AHEAD * 2 * TILE, 32);
        if (second) prefetch_to_l1(b + AHEAD * 2 * TILE, 32);
        _tile_loadd(4, x, stride);
        _tile_loadd(5, a, 64);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, a + TILE, 64);
        _tile_dpbf16ps(1, 4, 6);
        if (second) {
            _tile_loadd(7, b, 64);
            _tile_dpbf16ps(2, 4, 7);
            _tile_loadd(5, b + TILE, 64);
            _tile_dpbf16ps(3, 4, 5);
        }
    }
    alignas(64) float sums[16 * PANEL];
    if (p.added) add_to_sums(*p.added, 0, panel);
    _tile_stored(0, sums, PANEL * 4);
    _tile_stored(1, sums + 16, PANEL * 4);
    finish(p, sums, 0, p.M, panel);
    if (second) {
        _tile_stored(2, sums, PANEL * 4);
        _tile_stored(3, sums + 16, PANEL * 4);
        if (p.added) {
            _tile_loadd(0, sums, PANEL * 4);
            _tile_loadd(1, sums + 16, PANEL * 4);
            add_to_sums(*p.added, 0, panel + 1);
            _tile_stored(0, sums, PANEL * 4);
            _tile_stored(1, sums + 16, PANEL * 4);
        }
        finish(p, sums, 0, p.M, panel + 1);
    }
    _tile_release();
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

// Sums of one strip and panel that wait to be rounded and written, a row at a time, while the tiles of the next are multiplied: done at once,
// the same work leaves the tile unit idle for a third of the time.
struct Waiting {
    const float* sums = nullptr;  // [32, 32]
    int64_t m = 0, panel = 0, row = 0, rows = 0;

    void finish_rows(const Product& p, int64_t most) {
        for (; most > 0 && row < rows; most--, row++) finish(p, sums + row * PANEL, m + row, 1, panel);
    }
};

// A block of x by a group of panels. `partial` [panels, BLOCK_ROWS, 32] comes in and goes out unless this is the first or the last block of k.
inline void block_by_panels(const Product& p, const bf16* packed, int64_t m0, int64_t rows, int64_t step0, int64_t steps, int64_t panel0, int64_t panel1, float* partial) {
    TileShape shape(16);
    configure(shape);
    bool first = step0 == 0, last = step0 + steps == p.steps();
    alignas(4096) float own[2][32 * PANEL];
    alignas(64) float nowhere[16];
    int64_t strips = (rows + 31) / 32, rows_a_step = (31 + steps) / steps, which = 0;
    // The panels that this thread takes next, most likely: their lines come from memory to L2, a few a step, while these are multiplied.
    int64_t ahead = (panel1 - panel0) * team.threads, lines = (31 + strips) / strips;
    Waiting waiting;
    for (int64_t strip = 0; strip < strips; strip++) {
        int64_t m = m0 + strip * 32, there = std::min<int64_t>(32, rows - strip * 32);
        for (int64_t panel = panel0; panel < panel1; panel++, which ^= 1) {
            float* before = partial + ((panel - panel0) * BLOCK_ROWS + strip * 32) * PANEL;
            const bf16 *upper = packed + strip * 2 * steps * TILE, *lower = upper + steps * TILE;
            const bf16* w = p.panel(panel) + step0 * 2 * TILE;
            const bf16* next = panel + ahead < p.panels() ? p.panel(panel + ahead) + step0 * 2 * TILE + strip * steps * lines * 32 : nullptr;
            if (first) {
                zero_sums();
            } else {
                load_sums(before);
            }
            for (int64_t step = 0; step < steps; step++, upper += TILE, lower += TILE, w += 2 * TILE) {
                waiting.finish_rows(p, rows_a_step);
                // A store of a tile that comes 0.7 us after the one before waits for 0.25 us (seen on Sapphire Rapids): some go nowhere.
                if (step % 8 == 4) _tile_stored(0, nowhere, 0);
                if (strip == 0) prefetch_to_l1(w + AHEAD * 2 * TILE, 32);
                if (next) prefetch_to_l2(next + step * lines * 32, lines);
                if (next && last && p.added) p.added->prefetch(m / STRIP, panel + ahead, step, steps);
                _tile_loadd(6, w, 64);
                _tile_loadd(4, upper, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, w + TILE, 64);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(5, lower, 64);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            if (last) {
                if (p.added) add_to_sums(*p.added, m / STRIP, panel);
                store_sums(own[which]);
                waiting = {own[which], m, panel, 0, there};
            } else {
                store_sums(before);
            }
        }
    }
    waiting.finish_rows(p, 32);
    _tile_release();
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
                float* sums = partial ? partial + i * GROUP * BLOCK_ROWS * PANEL : nullptr;
                block_by_panels(p, packed, m0, rows, step0, steps, i * GROUP, std::min((i + 1) * GROUP, p.panels()), sums);
            });
        }
    }
}

inline void linear(const Product& p) {
    if (p.M <= 16) {
        parallel_for((p.panels() + 1) / 2, [&](int64_t i) { few_rows(p, 2 * i, 2 * i + 1 < p.panels()); });
    } else {
        many_rows(p);
    }
}

}  // namespace pagoda

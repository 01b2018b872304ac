// Products of bf16 and fp8 weights in float32, where no instruction multiplies bf16. Included by linear.h.
//
// Up to one strip of rows, weights become floats on their way into the registers. With more, a block of the panel is widened once, and stays in L1
// while all strips pass; a strip's sums wait in memory until the next block. Sums run in one order either way.
#pragma once
#include "strips.h"

namespace pagoda {

constexpr int64_t BLOCK_STEPS = 4;                         // 16 KB of floats: they and a strip's x fit into L1
constexpr int64_t STRAIGHT_STEPS = 8;                      // where there is but one strip, lines are asked for so far ahead

// Weights of one step as floats, [STEP_K][PANEL].
inline void widen_step(const bf16* from, float* to) {
    for (int64_t pair = 0; pair < STEP_K / 2; pair++, to += 2 * PANEL)
        for (int64_t c = 0; c < PANEL; c += W) {
            Raw weights = load_pairs(from + c / 16 * TILE + pair * 32 + c % 16 * 2);
            store(to + c, even(weights));
            store(to + PANEL + c, odd(weights));
        }
}

// sums [R, 32] = or += steps of a panel by one strip of x, [steps][R][STEP_K]. T: float, widened, or bf16.
template <int R, class T>
__attribute__((noinline)) void sum_steps(const T* w, const float* x, int64_t steps, bool add, float* sums, Coming& coming, const float* next_x) {
    V acc[R][COLUMNS];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < COLUMNS; c++) acc[r][c] = add ? load(sums + r * PANEL + c * W) : broadcast(0.0f);
    for (int64_t step = 0; step < steps; step++, w += 2 * TILE, x += R * STEP_K, next_x += R * STEP_K) {
        coming.ask();
        const float* values = x;
        for (int64_t k = 0; k < STEP_K; k += 2, values += 2) {
            V first[COLUMNS], second[COLUMNS];
            for (int64_t line = k / 2; line < R * STEP_K / 16; line += STEP_K / 2) _mm_prefetch(reinterpret_cast<const char*>(next_x + line * 16), _MM_HINT_T0);
            for (int c = 0; c < COLUMNS; c++) {
                if constexpr (std::is_same_v<T, float>) {
                    first[c] = load(w + k * PANEL + c * W), second[c] = load(w + (k + 1) * PANEL + c * W);
                } else {
                    Raw weights = load_pairs(w + c * W / 16 * TILE + k * 16 + c * W % 16 * 2);
                    first[c] = even(weights), second[c] = odd(weights);
                }
            }
            for (int r = 0; r < R; r++) {
                V value = broadcast(values[r * STEP_K]);
                for (int c = 0; c < COLUMNS; c++) acc[r][c] = fma(value, first[c], acc[r][c]);
            }
            for (int r = 0; r < R; r++) {
                V value = broadcast(values[r * STEP_K + 1]);
                for (int c = 0; c < COLUMNS; c++) acc[r][c] = fma(value, second[c], acc[r][c]);
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < COLUMNS; c++) store(sums + r * PANEL + c * W, acc[r][c]);
}

// A panel of bf16 weights, for strips_by_panel. That of fp8: linear_fp8.h.
struct PlainPanel {
    static constexpr int64_t STEP_BYTES = 2 * TILE * sizeof(bf16);
    const Product& p;
    int64_t panel;

    int64_t groups() const { return 1; }
    const void* step(int64_t i) const { return p.panel(panel) + i * 2 * TILE; }
    const bf16* straight(int64_t i) const { return p.panel(panel) + i * 2 * TILE; }  // as sum_steps takes it
    void widen(int64_t i, float* to) const { widen_step(straight(i), to); }
    void end_group(const float* sums, float*, int64_t m, int64_t rows, int64_t) const { finish(p, sums, m, rows, panel); }
};

// Rows m0 … m1, whole strips but for the last, by one panel, behind which `next` lies. `x`: wide_strips.
template <int R, class Panel>
inline void strips_by_panel(const Product& p, const Panel& panel, const float* x, int64_t m0, int64_t m1, const void* next) {
    constexpr int64_t SUMS = R * PANEL;
    const int64_t strips = (m1 - m0 + R - 1) / R, steps = p.steps(), steps_a_group = steps / panel.groups();
    const bool straight = strips == 1 && panel.straight(0) != nullptr;
    const int64_t block = straight ? STRAIGHT_STEPS : BLOCK_STEPS;
    auto open = reinterpret_cast<float*>(own_scratch((BLOCK_STEPS * 2 * TILE + 2 * strips * SUMS) * sizeof(float)));
    float* sums = open + BLOCK_STEPS * 2 * TILE;  // then totals
    for (int64_t group = 0, begin = 0; group < panel.groups(); group++) {
        const int64_t group_begin = begin, group_end = begin + steps_a_group;
        for (int64_t many; begin < group_end; begin += many) {
            many = std::min(block, group_end - begin);
            const int64_t left = steps - begin - many;
            Coming coming(left > 0 ? panel.step(begin + many) : next, std::min(block, left > 0 ? left : steps) * Panel::STEP_BYTES, strips * many);
            for (int64_t i = 0; !straight && i < many; i++) panel.widen(begin + i, open + i * 2 * TILE);
            for (int64_t strip = 0; strip < strips; strip++) {
                const float* from = x + (m0 + strip * R) * p.K + begin * R * STEP_K;
                // The next strip's x, for the last one that of the next block.
                const float* next_x = strip + 1 < strips ? from + R * p.K : left > 0 ? x + m0 * p.K + (begin + many) * R * STEP_K : x + m0 * p.K;
                if (left == 0) ask_for_results<bf16>(p, m0 + strip * R, R, panel.panel, p.epilogue == SILU_MUL ? PANEL / 2 : PANEL, p.epilogue == ADD);
                if (straight) {
                    sum_steps<R>(panel.straight(begin), from, many, begin > group_begin, sums, coming, next_x);
                } else {
                    sum_steps<R>(open, from, many, begin > group_begin, sums + strip * SUMS, coming, next_x);
                }
                if (begin + many == group_end) {
                    const int64_t m = m0 + strip * R;
                    panel.end_group(sums + strip * SUMS, sums + (strips + strip) * SUMS, m, std::min<int64_t>(R, m1 - m), group);
                }
            }
        }
    }
}

// x in float32, strip after strip: [M / rows][K / STEP_K][rows][STEP_K]. What stands for rows past the last is never looked at.
inline const float* wide_strips(const Product& p, int64_t rows) {
    auto wide = static_cast<float*>(scratch(0, (p.M + rows - 1) / rows * rows * p.K * sizeof(float)));
    parallel_for((p.M + 31) / 32, [&](int64_t block) {
        for (int64_t m = block * 32; m < std::min(p.M, block * 32 + 32); m++) {
            float* to = wide + m / rows * rows * p.K + m % rows * STEP_K;
            for (int64_t k = 0; k < p.K; k += STEP_K, to += rows * STEP_K)
                for (int64_t i = 0; i < STEP_K; i += W) store(to + i, load(p.x + m * p.ldx + k + i));
        }
    });
    return wide;
}

// More than STREAMED_ROWS rows. panel_at(i): see PlainPanel.
template <class PanelAt>
inline void many_rows(const Product& p, const PanelAt& panel_at) {
    const int64_t panels = p.panels(), strip = strip_rows(p.M);
    const float* x = wide_strips(p, strip);
    with_constant<STREAMED_ROWS, MOST_STRIP_ROWS>(strip, [&](auto constant) {
        constexpr int R = constant;
        const int64_t rows = rows_at_once(R, p.K * sizeof(float)), pieces = (p.M + rows - 1) / rows * panels;
        parallel_for_runs(pieces, PANELS_AT_ONCE, [&](int64_t begin, int64_t end) {
            for (int64_t piece = begin; piece < end; piece++) {
                const int64_t m0 = piece / panels * rows, panel = piece % panels;
                open_added_in_run(p.in_sums, piece == begin, panel, std::min(panel + end - piece, panels), m0, std::min(m0 + rows, p.M));
                strips_by_panel<R>(p, panel_at(panel), x, m0, std::min(m0 + rows, p.M), panel_at((piece + 1) % panels).step(0));
            }
        });
    });
}

}  // namespace pagoda

// What adapters add to a product on AMX, in its sums before they are rounded and gated: one more step of k for each adapter of a strip of
// rows. At the left are the rows' numbers (what shrinking made of them), at the right B. Included by linear_amx.h.
//
// Rows of other adapters have zeros at the left. So the sums of a row are the same alone and in company, as long as B is finite, which
// loading/peft.py sees to.
#pragma once
#include <vector>

#include "adapter_side.h"

namespace pagoda {

constexpr int64_t STRIP = 32;                // rows
constexpr int64_t NUMBERS = STRIP * STEP_K;  // values of a strip's rows and one step of ranks
static_assert(PAST_THE_END == STEP_K / 2 * 32, "a whole tile");

// One adapter's rows in a strip.
struct AddedBlock {
    const bf16* b;              // of all touched parts, as adapters_pairs.h has it
    bf16* numbers;              // [touched parts][steps of ranks][32 rows][32 ranks]
    int64_t rank;               // filled up to pairs
    int64_t at[MOST_PARTS];     // where each part's B begins; -1: not touched
    int64_t place[MOST_PARTS];  // among the touched
    bool upper, lower;          // halves of the strip that have such rows

    int64_t steps() const { return (rank + STEP_K - 1) / STEP_K; }
};

// Beside all rows of one call.
struct Added {
    const AdapterSide& side;
    std::vector<AddedBlock> blocks;  // strip after strip
    std::vector<int64_t> begins;     // of each strip, and where the last ends

    struct Columns {
        int64_t part, within;  // part -1: there are no more
    };

    // Of a half panel.
    Columns columns(int64_t panel, int64_t half) const {
        if (side.interleaved) return {half, panel * HALF};
        int64_t column = panel * PANEL + half * HALF;
        for (int64_t part = 0; part < side.parts; part++)
            if (column < side.ends[part]) return {part, column - side.begin(part)};
        return {-1, 0};
    }

    // B of a panel's columns, a share of it: spread over `of` calls, it arrives while others are multiplied.
    void prefetch(int64_t strip, int64_t panel, int64_t share, int64_t of) const {
        const int64_t first = begins[strip], count = begins[strip + 1] - first;
        for (int64_t i = count * share / of; i < count * (share + 1) / of; i++)
            for (int64_t half = 0; half < 2; half++) {
                const AddedBlock& block = blocks[first + i];
                const Columns at = columns(panel, half);
                if (at.part < 0 || block.at[at.part] < 0) continue;
                const bf16* from = block.b + block.at[at.part] + at.within * block.rank;
                for (int64_t line = 0; line < block.rank / 2; line++) _mm_prefetch(reinterpret_cast<const char*>(from + line * 32), _MM_HINT_T1);
            }
    }
};

// Adds to the sums of a strip and a panel: tiles 0 and 1 of the upper rows, 2 and 3 of the lower ones, unless the strip has but 16 rows.
inline void add_to_sums(const Added& added, int64_t strip, int64_t panel) {
    const Added::Columns halves[2] = {added.columns(panel, 0), added.columns(panel, 1)};
    for (int64_t i = added.begins[strip]; i < added.begins[strip + 1]; i++) {
        const AddedBlock& block = added.blocks[i];
        const auto there = [&](int half) { return halves[half].part >= 0 && block.at[halves[half].part] >= 0; };
        const auto weights = [&](int half, int64_t step) {
            return block.b + block.at[halves[half].part] + halves[half].within * block.rank + step * STEP_K * HALF;
        };
        for (int64_t step = 0; step < block.steps(); step++) {
            int64_t loaded = -1;
            const auto load_numbers = [&](int half) {
                if (halves[half].part == loaded) return;
                loaded = halves[half].part;
                const bf16* numbers = block.numbers + (block.place[loaded] * block.steps() + step) * NUMBERS;
                if (block.upper) _tile_loadd(4, numbers, STEP_K * 2);
                if (block.lower) _tile_loadd(5, numbers + NUMBERS / 2, STEP_K * 2);
            };
            if (there(0)) {
                load_numbers(0);
                _tile_loadd(6, weights(0, step), 64);
                if (block.upper) _tile_dpbf16ps(0, 4, 6);
                if (block.lower) _tile_dpbf16ps(2, 5, 6);
            }
            if (there(1)) {
                load_numbers(1);
                _tile_loadd(7, weights(1, step), 64);
                if (block.upper) _tile_dpbf16ps(1, 4, 7);
                if (block.lower) _tile_dpbf16ps(3, 5, 7);
            }
        }
    }
}

// The same apart from a product's own sums, as floats [rows, 32]. Tiles are configured for bf16.
inline void added_sums(const Added& added, int64_t strip, int64_t panel, bool lower, float* to) {
    zero_sums();
    add_to_sums(added, strip, panel);
    _tile_stored(0, to, PANEL * 4);
    _tile_stored(1, to + 16, PANEL * 4);
    if (lower) {
        _tile_stored(2, to + 16 * PANEL, PANEL * 4);
        _tile_stored(3, to + 16 * PANEL + 16, PANEL * 4);
    }
}

}  // namespace pagoda

// The deltas of bf16 rows by AMX: up to 16 rows of one adapter by its A, those numbers rounded to bf16, and by its B. Included by adapters.h.
//
// Adapters are read from memory far more than they are computed with, so what lies in a slot is in the order in which it is used. Ranks are
// filled up with zeros: of each part so that steps of B come out even (`AdapterShape`), of all touched parts together to whole tiles.
//
//     A    [in / 32][tiles of 16 ranks][16 pairs of k][16 ranks][2 k]
//     B    of each touched part [columns / 16][steps][pairs of a step's ranks][16 columns][2 ranks]
#pragma once

namespace pagoda {

constexpr int64_t MANY_ROWS = 16;
constexpr int64_t MOST_STEP = 32;     // ranks of B in one instruction
constexpr int64_t READ_AHEAD = 2048;  // values that are asked for before they are needed

struct AdapterShape {
    int64_t steps, step, rank, tiles;

    explicit AdapterShape(const InSlot& slot)
        : steps((slot.rank + MOST_STEP - 1) / MOST_STEP),
          step((slot.rank + 2 * steps - 1) / (2 * steps) * 2),
          rank(steps * step),
          tiles((touched_parts(slot) * rank + 15) / 16) {}
    int64_t ranks() const { return tiles * 16; }
};

// Tiles 0-3 sum, 4-5 hold `rows` rows of `left` bytes, 6-7 `right` rows of 16 columns.
inline void configure(int64_t rows, int64_t left, int64_t right) {
    TileShape shape(16);
    for (int i = 0; i < 6; i++) shape.rows[i] = uint8_t(rows);
    shape.column_bytes[4] = shape.column_bytes[5] = uint16_t(left);
    shape.rows[6] = shape.rows[7] = uint8_t(right);
    configure(shape);
}

// Not _tile_dpbf16ps, which takes digits only.
template <int SUMS, int LEFT, int RIGHT>
inline void multiply_tiles() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(LEFT), "i"(RIGHT));
}

// sums [rows, T * 16] float32: x's rows by T tiles of ranks, which are `apart` values from one step to the next. What few tiles leave of the
// four sums takes every other step: an instruction that adds to what the one before it added to waits for it.
template <int T>
inline void shrink_tiles(const bf16* x, int64_t stride, const bf16* a, int64_t apart, int64_t steps, int64_t rows, float* sums) {
    constexpr int CHAINS = T == 1 ? 4 : T == 2 ? 2 : 1;
    zero_sums();
    int64_t step = 0;
    auto take = [&](auto chain) {
        constexpr int C = decltype(chain)::value;
        const bf16* at = a + step * apart;
        prefetch_to_l1(at + READ_AHEAD, 16 * T);
        _tile_loadd(4, x + step * STEP_K, stride);
        _tile_loadd(6, at, 64);
        multiply_tiles<C * T, 4, 6>();
        if constexpr (T > 1) {
            _tile_loadd(7, at + TILE, 64);
            multiply_tiles<C * T + 1, 4, 7>();
        }
        if constexpr (T > 2) {
            _tile_loadd(6, at + 2 * TILE, 64);
            multiply_tiles<C * T + 2, 4, 6>();
        }
        if constexpr (T > 3) {
            _tile_loadd(7, at + 3 * TILE, 64);
            multiply_tiles<C * T + 3, 4, 7>();
        }
        step++;
    };
    while (step + CHAINS <= steps) {
        take(std::integral_constant<int, 0>());
        if constexpr (CHAINS > 1) take(std::integral_constant<int, 1>());
        if constexpr (CHAINS > 2) take(std::integral_constant<int, 2>()), take(std::integral_constant<int, 3>());
    }
    while (step < steps) take(std::integral_constant<int, 0>());
    alignas(64) float each[4][MANY_ROWS * 16];
    _tile_stored(0, each[0], 64);
    if (T * CHAINS > 1) _tile_stored(1, each[1], 64);
    if (T * CHAINS > 2) _tile_stored(2, each[2], 64);
    if (T * CHAINS > 3) _tile_stored(3, each[3], 64);
    for (int64_t r = 0; r < rows; r++)
        for (int t = 0; t < T; t++) {
            V all = load(each[t] + r * 16);
            for (int c = 1; c < CHAINS; c++) all += load(each[c * T + t] + r * 16);
            store(sums + (r * T + t) * 16, all);
        }
}

// numbers [16, ranks of all touched parts] of the group's rows.
inline void shrink_rows(const Deltas<bf16>& d, const Group<MANY_ROWS>& group, bf16* numbers) {
    const AdapterShape shape(group.slot);
    const int64_t size = d.side.size, count = group.count;
    const bf16* x = d.x + group.row[0] * d.ldx;
    int64_t ldx = d.ldx;
    if (group.row[count - 1] - group.row[0] != count - 1) {  // rows of a tile are equally far apart
        bf16* gathered = reinterpret_cast<bf16*>(own_scratch(size_t(count * size) * sizeof(bf16)));
        for (int64_t i = 0; i < count; i++) std::memcpy(gathered + i * size, d.x + group.row[i] * d.ldx, size_t(size) * sizeof(bf16));
        x = gathered, ldx = size;
    }
    configure(count, 64, 16);
    const bf16* a = static_cast<const bf16*>(group.slot.weights);
    const int64_t apart = shape.tiles * TILE, steps = size / STEP_K;
    alignas(64) float sums[MANY_ROWS * 64];
    for (int64_t tile = 0; tile < shape.tiles; tile += 4) {
        const int64_t some = std::min<int64_t>(4, shape.tiles - tile);
        for_count(some, [&](auto n) { shrink_tiles<decltype(n)::value>(x, ldx * 2, a + tile * TILE, apart, steps, count, sums); });
        for (int64_t r = 0; r < count; r++)
            for (int64_t t = 0; t < some; t++) store(numbers + r * shape.ranks() + (tile + t) * 16, load(sums + (r * some + t) * 16));
    }
    _tile_release();
}

// The sums of N times 16 columns, of the numbers in tiles 4 and 5.
template <int N>
inline void expand_tiles(const bf16* b, const AdapterShape& shape, float* sums) {
    const int64_t half = shape.step * 16;  // values of one step and 16 columns
    zero_sums();
    auto take = [&](auto column) {
        constexpr int C = decltype(column)::value;
        _tile_loadd(6, b, 64);
        multiply_tiles<C, 4, 6>();
        if (shape.steps > 1) {
            _tile_loadd(7, b + half, 64);
            multiply_tiles<C, 5, 7>();
        }
        b += shape.steps * half;
    };
    take(std::integral_constant<int, 0>());
    if constexpr (N > 1) take(std::integral_constant<int, 1>());
    if constexpr (N > 2) take(std::integral_constant<int, 2>());
    if constexpr (N > 3) take(std::integral_constant<int, 3>());
    _tile_stored(0, sums, 64);
    if constexpr (N > 1) _tile_stored(1, sums + MANY_ROWS * 16, 64);
    if constexpr (N > 2) _tile_stored(2, sums + 2 * MANY_ROWS * 16, 64);
    if constexpr (N > 3) _tile_stored(3, sums + 3 * MANY_ROWS * 16, 64);
}

inline void expand_rows(const Deltas<bf16>& d, const Group<MANY_ROWS>& group, int64_t start, int64_t stop, const bf16* numbers) {
    const AdapterShape shape(group.slot);
    const bf16* b = static_cast<const bf16*>(group.slot.weights) + shape.ranks() * d.side.size;
    configure(group.count, shape.step * 2, shape.step / 2);
    for_touched(d.side, group.slot, shape.rank, [&](int64_t part, int64_t place, int64_t at) {
        const int64_t begin = d.side.begin(part), first = std::max(start - begin, int64_t(0)), last = std::min(stop, d.side.ends[part]) - begin;
        if (first >= last) return;
        const bf16* few = numbers + place * shape.rank;
        _tile_loadd(4, few, shape.ranks() * 2);
        if (shape.steps > 1) _tile_loadd(5, few + shape.step, shape.ranks() * 2);
        alignas(64) float sums[4 * MANY_ROWS * 16];
        for (int64_t c = first; c < last; c += 64) {
            const int64_t some = std::min<int64_t>(4, (last - c) / 16);
            const bf16* from = b + at + c * shape.rank;
            prefetch_to_l1(from + READ_AHEAD, int(some * shape.rank / 2));
            for_count(some, [&](auto n) { expand_tiles<decltype(n)::value>(from, shape, sums); });
            for (int64_t i = 0; i < group.count; i++)
                for (int64_t t = 0; t < some; t++) {
                    bf16* y = d.columns(group.row[i], part, c + t * 16);
                    store(y, load(y) + load(sums + (t * MANY_ROWS + i) * 16));
                }
        }
    });
    _tile_release();
}

inline void add_deltas(const Deltas<bf16>& d) {
    const auto groups = groups_of<MANY_ROWS>(d);
    if (groups.empty()) return;
    int64_t count = int64_t(groups.size()), blocks = column_blocks(d.side), stride = 0;
    for (const auto& group : groups) stride = std::max(stride, MANY_ROWS * AdapterShape(group.slot).ranks());
    bf16* numbers = static_cast<bf16*>(scratch(1, size_t(count * stride) * sizeof(bf16)));
    parallel_for(count, [&](int64_t piece) { shrink_rows(d, groups[piece], numbers + piece * stride); });
    parallel_for(count * blocks, [&](int64_t piece) {
        const int64_t start = piece % blocks * ADDED_COLUMNS;
        expand_rows(d, groups[piece / blocks], start, start + ADDED_COLUMNS, numbers + piece / blocks * stride);
    });
}

}  // namespace pagoda

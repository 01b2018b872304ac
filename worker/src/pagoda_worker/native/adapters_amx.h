// Many rows of one adapter by AMX, to the bits of adapters_pairs.h, which includes this. (Where numbers are below 1e-38 AMX has zeros.)
#pragma once

namespace pagoda {

// Tiles 0-3 sum; 4 and 6 are multiplied, 5 and 7 too: `rows` rows of so many values at the left, a row for each pair at the right.
inline void configure(int64_t rows, int64_t values, int64_t more) {
    TileShape shape(16);
    for (int i = 0; i < 6; i++) shape.rows[i] = uint8_t(rows);
    shape.column_bytes[4] = uint16_t(values * 2), shape.rows[6] = uint8_t(values / 2);
    shape.column_bytes[5] = uint16_t(more * 2), shape.rows[7] = uint8_t(more / 2);
    configure(shape);
}

// numbers [16, ranks of all touched parts]. False: not by tiles.
inline bool shrink_tiles(const Deltas<bf16>& d, const Group<GROUP_ROWS>& group, bf16* numbers) {
    const int64_t size = d.side.size, count = group.count, vectors = AdapterShape(group.slot).vectors, apart = vectors * PAIRS;
    if (count <= FEWER_THAN_TILES) return false;
    const bf16* x = d.x + group.row[0] * d.ldx;
    int64_t ldx = d.ldx;
    if (group.row[count - 1] - group.row[0] != count - 1) {  // rows of a tile are equally far apart
        bf16* gathered = reinterpret_cast<bf16*>(own_scratch(size_t(count * size) * sizeof(bf16)));
        for (int64_t i = 0; i < count; i++) std::memcpy(gathered + i * size, d.x + group.row[i] * d.ldx, size_t(size) * sizeof(bf16));
        x = gathered, ldx = size;
    }
    configure(count, STEP_K, STEP_K);
    alignas(64) float sums[4][GROUP_ROWS * 16];
    for (int64_t vector = 0; vector < vectors; vector += 4) {
        const bf16* a = a_of(group.slot) + vector * PAIRS;
        const int64_t some = std::min<int64_t>(4, vectors - vector);
        zero_sums();
        for (int64_t k = 0; k < size; k += STEP_K, a += STEP_PAIRS * apart) {
            _tile_loadd(4, x + k, ldx * 2);
            _tile_loadd(6, a, apart * 2);
            _tile_dpbf16ps(0, 4, 6);
            if (some > 1) {
                _tile_loadd(7, a + PAIRS, apart * 2);
                _tile_dpbf16ps(1, 4, 7);
            }
            if (some > 2) {
                _tile_loadd(6, a + 2 * PAIRS, apart * 2);
                _tile_dpbf16ps(2, 4, 6);
            }
            if (some > 3) {
                _tile_loadd(7, a + 3 * PAIRS, apart * 2);
                _tile_dpbf16ps(3, 4, 7);
            }
        }
        _tile_stored(0, sums[0], 64);
        _tile_stored(1, sums[1], 64);
        _tile_stored(2, sums[2], 64);
        _tile_stored(3, sums[3], 64);
        for (int64_t r = 0; r < count; r++)
            for (int64_t t = 0; t < some; t++) store(numbers + (r * vectors + vector + t) * W, load(sums[t] + r * 16));
    }
    _tile_release();
    return true;
}

// As expand_pairs, of all rows.
inline bool expand_tiles(const Deltas<bf16>& d, const Group<GROUP_ROWS>& group, int64_t part, int64_t column, int64_t last, const bf16* b,
                         int64_t rank, const bf16* numbers, int64_t ranks) {
    if (group.count <= FEWER_THAN_TILES) return false;
    const int64_t step = std::min(STEP_K, rank), more = rank - step;
    configure(group.count, step, std::max<int64_t>(more, 2));
    _tile_loadd(4, numbers, ranks * 2);
    if (more) _tile_loadd(5, numbers + step, ranks * 2);
    alignas(64) float sums[4][GROUP_ROWS * 16];
    for (; column < last; column += 64) {
        const int64_t some = std::min<int64_t>(4, (last - column) / 16);
        const bf16* from = b + column * rank;
        zero_sums();
#define PAGODA_TAKE(c)                                        \
    if (some > c) {                                           \
        _tile_loadd(6, from + c * 16 * rank, 64);             \
        _tile_dpbf16ps(c, 4, 6);                              \
        if (more) {                                           \
            _tile_loadd(7, from + (c * rank + step) * 16, 64); \
            _tile_dpbf16ps(c, 5, 7);                          \
        }                                                     \
        _tile_stored(c, sums[c], 64);                         \
    }
        PAGODA_TAKE(0)
        PAGODA_TAKE(1)
        PAGODA_TAKE(2)
        PAGODA_TAKE(3)
#undef PAGODA_TAKE
        for (int64_t i = 0; i < group.count; i++)
            for (int64_t t = 0; t < some; t++) {
                bf16* y = d.columns(group.row[i], part, column + t * 16);
                store(y, load(y) + load(sums[t] + i * 16));
            }
    }
    _tile_release();
    return true;
}

}  // namespace pagoda

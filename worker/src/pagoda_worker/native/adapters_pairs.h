// The deltas of bf16 rows with vectors of 16. Included by adapters.h.
//
// Adapters are read from memory more than they are computed with, so what lies in a slot is in the order in which it is used. Ranks of each
// part are filled up with a zero to pairs, those of all touched parts together to whole vectors.
//
//     A    [in / 2 pairs][16 ranks, and so on][2]
//     B    of each touched part [columns / 16][rank / 2 pairs][16 columns][2]
//
// Sums are AMX's: of 32 inputs (or ranks) those at even and at odd places apart, then both together to what there is. So many rows of one
// adapter may go through tiles (adapters_amx.h) and few, whose tiles would be empty, through vectors, to the same bits. (vdpbf16ps, which
// multiplies pairs at once, takes longer than two multiplications of floats on Sapphire Rapids.)
#pragma once

namespace pagoda {

constexpr int64_t GROUP_ROWS = 16, FEWER_THAN_TILES = 12;
constexpr int64_t PAIRS = 2 * W;  // values of a vector of pairs
constexpr int64_t STEP_PAIRS = STEP_K / 2;
constexpr int64_t READ_AHEAD = 2048;  // values that are asked for before they are needed
constexpr int64_t MOST_RANKS = 64;

struct AdapterShape {
    int64_t rank, vectors;

    explicit AdapterShape(const InSlot& slot) : rank((slot.rank + 1) / 2 * 2), vectors((touched_parts(slot) * rank + W - 1) / W) {}
    int64_t ranks() const { return vectors * W; }
};

inline const bf16* a_of(const InSlot& slot) { return static_cast<const bf16*>(slot.weights); }
inline const bf16* b_of(const InSlot& slot, int64_t size) { return a_of(slot) + AdapterShape(slot).ranks() * size; }

// sums[i][c] += of `pairs` pairs at most 16: x[i] (floats) times C vectors, which are `across` values apart, as are pairs `down`.
template <int N, int C>
inline void add_step(V (&sums)[N][C], const float* x, int64_t ldx, const bf16* w, int64_t across, int64_t down, int64_t pairs) {
    V evens[N][C], odds[N][C];
    for (int i = 0; i < N; i++)
        for (int c = 0; c < C; c++) evens[i][c] = odds[i][c] = broadcast(0.0f);
    for (int64_t p = 0; p < pairs; p++, w += down)
        for (int c = 0; c < C; c++) {
            _mm_prefetch(reinterpret_cast<const char*>(w + c * across + READ_AHEAD), _MM_HINT_T0);
            Raw both = load_pairs(w + c * across);
            V of_even = even(both), of_odd = odd(both);
            for (int i = 0; i < N; i++) {
                evens[i][c] = fma(broadcast(x[i * ldx + 2 * p]), of_even, evens[i][c]);
                odds[i][c] = fma(broadcast(x[i * ldx + 2 * p + 1]), of_odd, odds[i][c]);
            }
        }
    for (int i = 0; i < N; i++)
        for (int c = 0; c < C; c++) sums[i][c] += evens[i][c] + odds[i][c];
}

template <int N, int C>
inline void no_sums(V (&sums)[N][C]) {
    for (int i = 0; i < N; i++)
        for (int c = 0; c < C; c++) sums[i][c] = broadcast(0.0f);
}

inline void widen(const bf16* from, float* to, int64_t count) {
    for (int64_t k = 0; k < count; k += W) store(to + k, load(from + k));
}

// numbers [rows, ranks of all touched parts], rows ldn apart, of N rows of the group, from `first` on.
template <int N, int ROWS, class To>
inline void shrink_pairs(const Deltas<bf16>& d, const Group<ROWS>& group, int64_t first, To* numbers, int64_t ldn) {
    const int64_t size = d.side.size, vectors = AdapterShape(group.slot).vectors, apart = vectors * PAIRS;
    float* x = reinterpret_cast<float*>(own_scratch(size_t(N * size) * sizeof(float)));
    for (int i = 0; i < N; i++) widen(d.x + group.row[first + i] * d.ldx, x + i * size, size);
    const auto take = [&](auto count, int64_t vector) {
        constexpr int C = decltype(count)::value;
        V sums[N][C];
        no_sums(sums);
        const bf16* a = a_of(group.slot) + vector * PAIRS;
        for (int64_t k = 0; k < size; k += STEP_K, a += STEP_PAIRS * apart) add_step(sums, x + k, size, a, PAIRS, apart, STEP_PAIRS);
        for (int i = 0; i < N; i++)
            for (int c = 0; c < C; c++) store(numbers + (first + i) * ldn + (vector + c) * W, sums[i][c]);
    };
    int64_t vector = 0;
    for (; vector + 2 <= vectors; vector += 2) take(std::integral_constant<int, 2>(), vector);
    if (vector < vectors) take(std::integral_constant<int, 1>(), vector);
}

// Adds a part's columns from `column` to `last`. b, numbers [rows, ranks]: of the part.
template <int N>
inline void expand_pairs(const Deltas<bf16>& d, const Group<GROUP_ROWS>& group, int64_t first, int64_t part, int64_t column, int64_t last,
                         const bf16* b, int64_t rank, const bf16* numbers, int64_t ranks) {
    float few[N * MOST_RANKS];
    for (int i = 0; i < N; i++)
        for (int64_t r = 0; r < rank; r++) few[i * MOST_RANKS + r] = to_float(numbers[(first + i) * ranks + r]);
    const auto take = [&](auto count) {
        constexpr int C = decltype(count)::value;
        V sums[N][C];
        no_sums(sums);
        for (int64_t r = 0; r < rank; r += STEP_K)
            add_step(sums, few + r, MOST_RANKS, b + column * rank + r * W, rank * W, PAIRS, std::min(STEP_K, rank - r) / 2);
        for (int i = 0; i < N; i++)
            for (int c = 0; c < C; c++) {
                bf16* y = d.columns(group.row[first + i], part, column + c * W);
                store(y, load(y) + sums[i][c]);
            }
        column += C * W;
    };
    while (column + 2 * W <= last) take(std::integral_constant<int, 2>());
    if (column < last) take(std::integral_constant<int, 1>());
}

// As InRows, by the order of this file.
struct InPairs {
    static int64_t ranks(const InSlot& slot) { return AdapterShape(slot).ranks(); }

    template <int N>
    static void shrink_rows(const Deltas<bf16>& d, const Group<FEW_ROWS>& group, float* numbers, int64_t apart) {
        shrink_pairs<N>(d, group, 0, numbers, apart);
    }

    template <int N>
    static void expand(const AddedSums& added, const InSlot& slot, const float* numbers, const HalfPanels& columns, const int64_t* at) {
        const int64_t rank = AdapterShape(slot).rank;
        const PartPlace place = place_of(added.side, slot, rank, columns.part);
        const bf16* b = b_of(slot, added.side.size) + place.at + columns.within * rank;
        const float* x = numbers + place.place * rank;
        int64_t half = 0;
        const auto take = [&](auto count) {
            constexpr int C = decltype(count)::value;
            V sums[N][C];
            add_ranks(sums, x, added.apart, b + half * HALF * rank, rank, columns.ahead * HALF * rank);
            for (int i = 0; i < N; i++)
                for (int c = 0; c < C; c++) store(columns.to + (half + c) * columns.apart + at[i], sums[i][c]);
            half += C;
        };
        while (half + 4 <= columns.count) take(std::integral_constant<int, 4>());
        while (half + 2 <= columns.count) take(std::integral_constant<int, 2>());
        if (half < columns.count) take(std::integral_constant<int, 1>());
    }

  private:
    // sums = x by so many ranks of C vectors. What lies `ahead` of them is asked for.
    template <int N, int C>
    static void add_ranks(V (&sums)[N][C], const float* x, int64_t ldx, const bf16* b, int64_t rank, int64_t ahead) {
        no_sums(sums);
        for (int64_t r = 0; r < rank; r += 2, b += PAIRS)
            for (int c = 0; c < C; c++) {
                const bf16* at = b + c * HALF * rank;
                _mm_prefetch(reinterpret_cast<const char*>(at + ahead), _MM_HINT_T1);
                const Raw both = load_pairs(at);
                const V of_even = even(both), of_odd = odd(both);
                for (int i = 0; i < N; i++) sums[i][c] = fma(broadcast(x[i * ldx + r]), of_even, sums[i][c]);
                for (int i = 0; i < N; i++) sums[i][c] = fma(broadcast(x[i * ldx + r + 1]), of_odd, sums[i][c]);
            }
    }
};

}  // namespace pagoda

#if defined(__AMX_BF16__)
#include "adapters_amx.h"
#else
namespace pagoda {
inline bool shrink_tiles(const Deltas<bf16>&, const Group<GROUP_ROWS>&, bf16*) { return false; }
inline bool expand_tiles(const Deltas<bf16>&, const Group<GROUP_ROWS>&, int64_t, int64_t, int64_t, const bf16*, int64_t, const bf16*, int64_t) {
    return false;
}
}  // namespace pagoda
#endif

namespace pagoda {

// body(rows at once, the first of them), few at a time.
template <class Body>
inline void for_few(int64_t rows, const Body& body) {
    for (int64_t first = 0; first < rows; first += FEW_ROWS)
        for_count(std::min(FEW_ROWS, rows - first), [&](auto n) { body(n, first); });
}

inline void shrink_group(const Deltas<bf16>& d, const Group<GROUP_ROWS>& group, bf16* numbers) {
    if (shrink_tiles(d, group, numbers)) return;
    for_few(group.count, [&](auto n, int64_t first) { shrink_pairs<decltype(n)::value>(d, group, first, numbers, AdapterShape(group.slot).ranks()); });
}

inline void expand_group(const Deltas<bf16>& d, const Group<GROUP_ROWS>& group, int64_t start, int64_t stop, const bf16* numbers) {
    const AdapterShape shape(group.slot);
    const bf16* b = b_of(group.slot, d.side.size);
    for_touched(d.side, group.slot, shape.rank, [&](int64_t part, int64_t place, int64_t at) {
        const int64_t begin = d.side.begin(part), column = std::max(start - begin, int64_t(0));
        const int64_t last = std::min(stop, d.side.ends[part]) - begin;
        const bf16* few = numbers + place * shape.rank;
        if (column >= last || expand_tiles(d, group, part, column, last, b + at, shape.rank, few, shape.ranks())) return;
        for_few(group.count, [&](auto n, int64_t first) {
            expand_pairs<decltype(n)::value>(d, group, first, part, column, last, b + at, shape.rank, few, shape.ranks());
        });
    });
}

inline void add_deltas(const Deltas<bf16>& d) {
    const auto groups = groups_of<GROUP_ROWS>(d);
    if (groups.empty()) return;
    int64_t count = int64_t(groups.size()), blocks = column_blocks(d.side), stride = 0;
    for (const auto& group : groups) stride = std::max(stride, GROUP_ROWS * AdapterShape(group.slot).ranks());
    bf16* numbers = static_cast<bf16*>(scratch(1, size_t(count * stride) * sizeof(bf16)));
    parallel_for(count, [&](int64_t piece) { shrink_group(d, groups[piece], numbers + piece * stride); });
    parallel_for(count * blocks, [&](int64_t piece) {
        const int64_t start = piece % blocks * ADDED_COLUMNS;
        expand_group(d, groups[piece / blocks], start, start + ADDED_COLUMNS, numbers + piece / blocks * stride);
    });
}

}  // namespace pagoda

#if defined(__AMX_BF16__)
#include "adapters_added.h"
#endif

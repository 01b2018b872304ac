// LoRA deltas of rows that each have an adapter of their own, see layers/adapters.py for the layout. Two passes: a row's few numbers
// (shrink), then those into its columns (expand). Up to four rows of one adapter share what is read of it; each row adds up in the same
// order alone and in company. T is float or bf16; float32 within.
#pragma once
#include <algorithm>
#include <type_traits>
#include <vector>

#include "parallel.h"
#include "vec.h"

namespace pagoda {

constexpr int64_t GROUP_ROWS = 4, ADDED_COLUMNS = 512;
constexpr int64_t GROUP_RANKS = W / GROUP_ROWS;  // their dot products are one vector
constexpr int64_t HALF = 16;                     // columns of each half that lie together in an interleaved y, see native/linear.h

template <class T>
struct Deltas {
    const T *x, *a, *b;
    const int32_t *ranks, *slots;
    const int64_t* ends;
    T* y;
    int64_t rows, size, out, parts, slot_count, max_rank, ldx, interleaved;
};

struct Group {
    int64_t slot, rank, count, row[GROUP_ROWS];
};

// Two vectors' worth of a dot product.
inline V dot_step(const float* x, const float* a, V sum) { return fma(load(x), load(a), sum); }
inline V dot_step(const bf16* x, const bf16* a, V sum) {
#if defined(__AVX512BF16__)
    return _mm512_dpbf16_ps(sum, (__m512bh)load_pairs(x), (__m512bh)load_pairs(a));
#else
    Raw of_x = load_pairs(x), of_a = load_pairs(a);
    return fma(odd(of_x), odd(of_a), fma(even(of_x), even(of_a), sum));
#endif
}

// numbers[i][p][r] of the group's rows: dot products of x with A's rows. `numbers` has room for whole groups of ranks.
template <int N, class T>
inline void shrink(const Deltas<T>& d, const Group& group, int64_t part, float* numbers) {
    constexpr int64_t STEP = std::is_same<T, bf16>::value ? 2 * W : W;
    const T* a = d.a + (group.slot * d.parts + part) * d.max_rank * d.size;
    for (int64_t first = 0; first < group.rank; first += GROUP_RANKS) {
        const T* rows[GROUP_RANKS];
        for (int64_t r = 0; r < GROUP_RANKS; r++) rows[r] = a + std::min(first + r, group.rank - 1) * d.size;
        V sums[W];
        for (int i = 0; i < W; i++) sums[i] = broadcast(0.0f);
        for (int64_t k = 0; k < d.size; k += STEP)
            for (int64_t r = 0; r < GROUP_RANKS; r++)
                for (int i = 0; i < N; i++)
                    sums[i * GROUP_RANKS + r] = dot_step(d.x + group.row[i] * d.ldx + k, rows[r] + k, sums[i * GROUP_RANKS + r]);
        alignas(64) float each[W];
        store(each, sum_each(sums));
        for (int i = 0; i < N; i++)
            for (int64_t r = 0; r < std::min(GROUP_RANKS, group.rank - first); r++)
                numbers[(i * d.parts + part) * d.max_rank + first + r] = each[i * GROUP_RANKS + r];
    }
}

// Adds to y of the group's rows: B's columns `start` to `stop`, which lie in one part that begins at `begin`.
template <int N, class T>
inline void expand(const Deltas<T>& d, const Group& group, int64_t part, int64_t begin, int64_t start, int64_t stop, const float* numbers) {
    const T* b = d.b + group.slot * d.max_rank * d.out;
    for (int64_t c = start; c < stop; c += W) {
        int64_t within = c - begin, at = d.interleaved ? within / HALF * 2 * HALF + part * HALF + within % HALF : c;
        V sums[N];
        for (int i = 0; i < N; i++) sums[i] = load(d.y + group.row[i] * d.out + at);
        for (int64_t r = 0; r < group.rank; r++) {
            V of_b = load(b + r * d.out + c);
            for (int i = 0; i < N; i++) sums[i] = fma(broadcast(numbers[(i * d.parts + part) * d.max_rank + r]), of_b, sums[i]);
        }
        for (int i = 0; i < N; i++) store(d.y + group.row[i] * d.out + at, sums[i]);
    }
}

template <class Body>
inline void for_count(int64_t count, const Body& body) {
    switch (count) {
        case 1: return body(std::integral_constant<int, 1>());
        case 2: return body(std::integral_constant<int, 2>());
        case 3: return body(std::integral_constant<int, 3>());
        default: return body(std::integral_constant<int, 4>());
    }
}

template <class T>
inline std::vector<Group> groups_of(const Deltas<T>& d) {
    std::vector<Group> groups;
    std::vector<int64_t> open(size_t(d.slot_count), -1);  // the group of each slot that still has room
    for (int64_t row = 0; row < d.rows; row++) {
        int64_t slot = d.slots[row];
        if (slot < 0 || d.ranks[slot] == 0) continue;
        if (open[slot] < 0 || groups[open[slot]].count == GROUP_ROWS) {
            open[slot] = int64_t(groups.size());
            groups.push_back({slot, d.ranks[slot], 0, {}});
        }
        Group& group = groups[open[slot]];
        group.row[group.count++] = row;
    }
    return groups;
}

template <class T>
inline void add_deltas(const Deltas<T>& d) {
    std::vector<Group> groups = groups_of(d);
    if (groups.empty()) return;
    int64_t count = int64_t(groups.size()), stride = GROUP_ROWS * d.parts * d.max_rank;
    std::vector<float> numbers(size_t(count * stride));
    parallel_for(count, [&](int64_t piece) {
        const Group& group = groups[piece];
        float* own = numbers.data() + piece * stride;
        for (int64_t part = 0; part < d.parts; part++)
            for_count(group.count, [&](auto n) { shrink<decltype(n)::value>(d, group, part, own); });
    });
    int64_t blocks = (d.out + ADDED_COLUMNS - 1) / ADDED_COLUMNS;
    parallel_for(count * blocks, [&](int64_t piece) {
        const Group& group = groups[piece / blocks];
        const float* own = numbers.data() + piece / blocks * stride;
        int64_t first = piece % blocks * ADDED_COLUMNS, last = std::min(d.out, first + ADDED_COLUMNS);
        for (int64_t part = 0, begin = 0; part < d.parts; begin = d.ends[part++]) {
            int64_t start = std::max(first, begin), stop = std::min(last, d.ends[part]);
            if (start < stop)
                for_count(group.count, [&](auto n) { expand<decltype(n)::value>(d, group, part, begin, start, stop, own); });
        }
    });
}

// out[r] = silu of the first half of an interleaved y[r] times the second; `size` columns each.
template <class T>
inline void gate_halves(const T* y, T* out, int64_t rows, int64_t size) {
    parallel_for((rows + 7) / 8, [&](int64_t piece) {
        for (int64_t r = piece * 8; r < std::min(rows, piece * 8 + 8); r++)
            for (int64_t c = 0; c < size; c += W) {
                const T* both = y + r * 2 * size + c / HALF * 2 * HALF + c % HALF;
                store(out + r * size + c, silu(load(both)) * load(both + HALF));
            }
    });
}

}  // namespace pagoda

// LoRA deltas of rows that each have an adapter of their own, see layers/adapters.py for the layout. Two passes: a row's few numbers
// (shrink), then those into its columns (expand). Up to four rows of one adapter share what is read of it; each row adds up in the same
// order alone and in company. T is float or bf16; float32 within.
#pragma once
#include <algorithm>
#include <vector>

#include "parallel.h"
#include "vec.h"

namespace pagoda {

constexpr int64_t GROUP_ROWS = 4, ADDED_COLUMNS = 512;

template <class T>
struct Deltas {
    const T *x, *a, *b;
    const int32_t *ranks, *slots;
    const int64_t* ends;
    T* y;
    int64_t rows, size, out, parts, slot_count, max_rank, ldx;
};

struct Group {
    int64_t slot, rank, count, row[GROUP_ROWS];
};

// numbers[i][p * max_rank + r] of the group's rows: dot products of x with A's rows.
template <int N, class T>
inline void shrink(const Deltas<T>& d, const Group& group, int64_t part, float* numbers) {
    const T* a = d.a + (group.slot * d.parts + part) * d.max_rank * d.size;
    for (int64_t r = 0; r < group.rank; r += 2) {
        const T *first = a + r * d.size, *second = r + 1 < group.rank ? first + d.size : first;
        V sums[2][N];
        for (int i = 0; i < N; i++) sums[0][i] = sums[1][i] = broadcast(0.0f);
        for (int64_t k = 0; k < d.size; k += W) {
            V of_first = load(first + k), of_second = load(second + k);
            for (int i = 0; i < N; i++) {
                V x = load(d.x + group.row[i] * d.ldx + k);
                sums[0][i] = fma(x, of_first, sums[0][i]);
                sums[1][i] = fma(x, of_second, sums[1][i]);
            }
        }
        for (int i = 0; i < N; i++) {
            float* at = numbers + i * d.parts * d.max_rank + part * d.max_rank + r;
            at[0] = sum(sums[0][i]);
            if (r + 1 < group.rank) at[1] = sum(sums[1][i]);
        }
    }
}

// y of the group's rows, columns from `start` to `stop`, which lie in one part.
template <int N, class T>
inline void expand(const Deltas<T>& d, const Group& group, int64_t part, int64_t start, int64_t stop, const float* numbers) {
    const T* b = d.b + group.slot * d.max_rank * d.out;
    for (int64_t c = start; c < stop; c += W) {
        V sums[N];
        for (int i = 0; i < N; i++) sums[i] = load(d.y + group.row[i] * d.out + c);
        for (int64_t r = 0; r < group.rank; r++) {
            V of_b = load(b + r * d.out + c);
            for (int i = 0; i < N; i++)
                sums[i] = fma(broadcast(numbers[i * d.parts * d.max_rank + part * d.max_rank + r]), of_b, sums[i]);
        }
        for (int i = 0; i < N; i++) store(d.y + group.row[i] * d.out + c, sums[i]);
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
    parallel_for(count * d.parts, [&](int64_t piece) {
        const Group& group = groups[piece / d.parts];
        float* own = numbers.data() + piece / d.parts * stride;
        for_count(group.count, [&](auto n) { shrink<decltype(n)::value>(d, group, piece % d.parts, own); });
    });
    int64_t blocks = (d.out + ADDED_COLUMNS - 1) / ADDED_COLUMNS;
    parallel_for(count * blocks, [&](int64_t piece) {
        const Group& group = groups[piece / blocks];
        const float* own = numbers.data() + piece / blocks * stride;
        int64_t first = piece % blocks * ADDED_COLUMNS, last = std::min(d.out, first + ADDED_COLUMNS);
        for (int64_t part = 0, begin = 0; part < d.parts; begin = d.ends[part++]) {
            int64_t start = std::max(first, begin), stop = std::min(last, d.ends[part]);
            if (start < stop) for_count(group.count, [&](auto n) { expand<decltype(n)::value>(d, group, part, start, stop, own); });
        }
    });
}

}  // namespace pagoda

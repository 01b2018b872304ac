// LoRA deltas of rows that each have an adapter of their own, added to a product's rows. Two passes: a row's few numbers (shrink), then those
// into its columns (expand). Rows of one adapter are taken together and share what is read of it; each row adds up in the same order alone
// and in company. T is float or bf16; sums are float32. adapters_pairs.h has bf16 with vectors of 16, adapters_bytes.h what lies beside
// quantized weights.
#pragma once
#include <algorithm>
#include <type_traits>
#include <vector>

#include "adapter_side.h"
#include "linear_fp8.h"
#include "linear_quantized.h"
#include "parallel.h"
#include "vec.h"

namespace pagoda {

constexpr int64_t ADDED_COLUMNS = 512;
constexpr int64_t GATED_ROWS = 512;  // whose product waits in memory for the deltas and the gate

template <class T>
struct Deltas {
    const AdapterSide& side;
    const int32_t* slots;  // [rows]; -1: none
    const T* x;
    T* y;
    int64_t rows, ldx, ldy;

    // Of the 16 columns that begin at the part's column `within`.
    T* columns(int64_t row, int64_t part, int64_t within) const {
        return y + row * ldy + (side.interleaved ? within / HALF * 2 * HALF + part * HALF + within % HALF : side.begin(part) + within);
    }
};

template <int N, class T>
inline std::vector<Group<N>> groups_of(const Deltas<T>& d) {
    std::vector<Group<N>> groups;
    std::vector<int64_t> open(size_t(d.side.slot_count), -1);  // the group of each slot that still has room
    for (int64_t row = 0; row < d.rows; row++) {
        int64_t slot = d.slots[row];
        if (slot < 0 || d.side.slot(slot).rank == 0) continue;
        if (open[slot] < 0 || groups[open[slot]].count == N) {
            open[slot] = int64_t(groups.size());
            groups.push_back({d.side.slot(slot), 0, {}});
        }
        Group<N>& group = groups[open[slot]];
        group.row[group.count++] = row;
    }
    return groups;
}

// Pieces of a part's columns, so that several threads have some to add.
inline int64_t column_blocks(const AdapterSide& side) { return (side.out() + ADDED_COLUMNS - 1) / ADDED_COLUMNS; }

constexpr int64_t GROUP_RANKS = W / FEW_ROWS;  // their dot products are one vector

// Two vectors' worth of a dot product.
inline V dot_step(const float* x, const float* a, V sum) { return fma(load(x), load(a), sum); }
inline V dot_step(const bf16* x, const bf16* a, V sum) {
    Raw of_x = load_pairs(x), of_a = load_pairs(a);
    return fma(odd(of_x), odd(of_a), fma(even(of_x), even(of_a), sum));
}

// numbers[i][r] of the group's rows: dot products of x with A's rows, of all touched parts.
template <int N, class T>
inline void shrink(const Deltas<T>& d, const Group<FEW_ROWS>& group, float* numbers) {
    constexpr int64_t STEP = std::is_same<T, bf16>::value ? 2 * W : W;
    const T* a = static_cast<const T*>(group.slot.weights);
    const int64_t ranks = touched_parts(group.slot) * group.slot.rank, size = d.side.size;
    for (int64_t first = 0; first < ranks; first += GROUP_RANKS) {
        const T* rows[GROUP_RANKS];
        for (int64_t r = 0; r < GROUP_RANKS; r++) rows[r] = a + std::min(first + r, ranks - 1) * size;
        V sums[W];
        for (int i = 0; i < W; i++) sums[i] = broadcast(0.0f);
        for (int64_t k = 0; k < size; k += STEP)
            for (int64_t r = 0; r < GROUP_RANKS; r++)
                for (int i = 0; i < N; i++)
                    sums[i * GROUP_RANKS + r] = dot_step(d.x + group.row[i] * d.ldx + k, rows[r] + k, sums[i * GROUP_RANKS + r]);
        alignas(64) float each[W];
        store(each, sum_each(sums));
        for (int i = 0; i < N; i++)
            for (int64_t r = 0; r < std::min(GROUP_RANKS, ranks - first); r++) numbers[i * ranks + first + r] = each[i * GROUP_RANKS + r];
    }
}

// Adds columns `start` to `stop` of all.
template <int N, class T>
inline void expand(const Deltas<T>& d, const Group<FEW_ROWS>& group, int64_t start, int64_t stop, const float* numbers) {
    const int64_t rank = group.slot.rank, ranks = touched_parts(group.slot) * rank;
    const T* b = static_cast<const T*>(group.slot.weights) + ranks * d.side.size;
    for_touched(d.side, group.slot, rank, [&](int64_t part, int64_t place, int64_t at) {
        const int64_t begin = d.side.begin(part), width = d.side.ends[part] - begin;
        for (int64_t c = std::max(start - begin, int64_t(0)); c < std::min(stop - begin, width); c += W) {
            V sums[N];
            for (int i = 0; i < N; i++) sums[i] = load(d.columns(group.row[i], part, c));
            for (int64_t r = 0; r < rank; r++) {
                V of_b = load(b + at + r * width + c);
                for (int i = 0; i < N; i++) sums[i] = fma(broadcast(numbers[i * ranks + place * rank + r]), of_b, sums[i]);
            }
            for (int i = 0; i < N; i++) store(d.columns(group.row[i], part, c), sums[i]);
        }
    });
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
inline void add_deltas(const Deltas<T>& d) {
    const auto groups = groups_of<FEW_ROWS>(d);
    if (groups.empty()) return;
    int64_t count = int64_t(groups.size()), blocks = column_blocks(d.side), stride = 0;
    for (const auto& group : groups) stride = std::max(stride, FEW_ROWS * touched_parts(group.slot) * group.slot.rank);
    float* numbers = static_cast<float*>(scratch(1, size_t(count * stride) * sizeof(float)));
    parallel_for(count, [&](int64_t piece) {
        for_count(groups[piece].count, [&](auto n) { shrink<decltype(n)::value>(d, groups[piece], numbers + piece * stride); });
    });
    parallel_for(count * blocks, [&](int64_t piece) {
        const auto& group = groups[piece / blocks];
        int64_t start = piece % blocks * ADDED_COLUMNS;
        for_count(group.count, [&](auto n) {
            expand<decltype(n)::value>(d, group, start, start + ADDED_COLUMNS, numbers + piece / blocks * stride);
        });
    });
}

// In a product's sums, as AddedSums::expand.
template <class T, int N>
inline void expand_in_sums(const AddedSums& added, const InSlot& slot, const float* numbers, const HalfPanels& columns, const int64_t* at) {
    const int64_t rank = slot.rank, width = added.side.ends[columns.part] - added.side.begin(columns.part);
    const T* b = static_cast<const T*>(slot.weights) + touched_parts(slot) * rank * added.side.size;
    const PartPlace place = place_of(added.side, slot, rank, columns.part);
    for (int64_t c = 0; c < columns.count * HALF; c += W) {
        V sums[N];
        for (V& sum : sums) sum = broadcast(0.0f);
        for (int64_t r = 0; r < rank; r++) {
            const V of_b = load(b + place.at + r * width + columns.within + c);
            for (int i = 0; i < N; i++) sums[i] = fma(broadcast(numbers[i * added.apart + place.place * rank + r]), of_b, sums[i]);
        }
        for (int i = 0; i < N; i++) store(columns.to + c / HALF * columns.apart + at[i] + c % HALF, sums[i]);
    }
}

// How many numbers a row of this slot has, shrinking N rows of one into them, and `expand_in_sums`: in memory as floats have it.
template <class T>
struct InRows {
    static int64_t ranks(const InSlot& slot) { return touched_parts(slot) * slot.rank; }

    template <int N>
    static void shrink_rows(const Deltas<T>& d, const Group<FEW_ROWS>& group, float* numbers, int64_t apart) {
        float* dense = reinterpret_cast<float*>(own_scratch(size_t(N * ranks(group.slot)) * sizeof(float)));
        shrink<N>(d, group, dense);
        for (int i = 0; i < N; i++) std::copy_n(dense + i * ranks(group.slot), ranks(group.slot), numbers + i * apart);
    }

    template <int N>
    static void expand(const AddedSums& added, const InSlot& slot, const float* numbers, const HalfPanels& columns, const int64_t* at) {
        expand_in_sums<T, N>(added, slot, numbers, columns, at);
    }
};

template <class Layout, class T>
inline AddedSums added_in_sums(const Deltas<T>& d) {
    AddedSums added{d.side, groups_of<FEW_ROWS>(d), std::vector<uint8_t>(size_t(d.rows)), nullptr, 0, nullptr};
    for (const auto& group : added.groups) {
        added.apart = std::max(added.apart, Layout::ranks(group.slot));
        for (int64_t i = 0; i < group.count; i++) added.adapted[size_t(group.row[i])] = 1;
    }
    const int64_t count = int64_t(added.groups.size()), of_group = FEW_ROWS * added.apart;
    float* numbers = static_cast<float*>(scratch(1, size_t(count * of_group) * sizeof(float)));
    parallel_for(count, [&](int64_t i) {
        const auto& group = added.groups[size_t(i)];
        for_count(group.count, [&](auto n) { Layout::template shrink_rows<decltype(n)::value>(d, group, numbers + i * of_group, added.apart); });
    });
    added.numbers = numbers;
    added.expand = [](const AddedSums& all, const InSlot& slot, const float* few, int64_t rows, const HalfPanels& columns, const int64_t* at) {
        for_count(rows, [&](auto n) { Layout::template expand<decltype(n)::value>(all, slot, few, columns, at); });
    };
    return added;
}

}  // namespace pagoda

#if defined(__AVX512F__)
#include "adapters_pairs.h"
#endif
#if defined(__AVX512F__) && !defined(__AMX_BF16__)
#include "adapters_bytes.h"
#define PAGODA_ADAPTERS_IN_BYTES 1
#else
#define PAGODA_ADAPTERS_IN_BYTES 0
#endif

namespace pagoda {

// In which order memory has the adapters of such rows, beside a product of kind P.
template <class T, class P>
struct LayoutOf {
    using Type = InRows<T>;
};
#if defined(__AVX512F__)
template <class P>
struct LayoutOf<bf16, P> {
    using Type = InPairs;
};
#endif
#if PAGODA_ADAPTERS_IN_BYTES
template <class T>
struct LayoutOf<T, QuantizedProduct> {
    using Type = InBytes<T>;
};
template <>
struct LayoutOf<bf16, QuantizedProduct> {
    using Type = InBytes<bf16>;
};
#endif

// An adapter of these rows changes this product.
inline bool any_touches(const AdapterSide& side, const int32_t* slots, int64_t rows) {
    return std::any_of(slots, slots + rows, [&](int32_t slot) { return slot >= 0 && side.slot(slot).rank > 0; });
}

// out[r] = silu of the first half of an interleaved y[r] times the second; `size` columns each, rows of out ldo apart.
template <class T>
inline void gate_halves(const T* y, T* out, int64_t rows, int64_t size, int64_t ldo) {
    parallel_for((rows + 7) / 8, [&](int64_t piece) {
        for (int64_t r = piece * 8; r < std::min(rows, piece * 8 + 8); r++)
            for (int64_t c = 0; c < size; c += W) {
                const T* both = y + r * 2 * size + c / HALF * 2 * HALF + c % HALF;
                store(out + r * ldo + c, silu(load(both)) * load(both + HALF));
            }
    });
}

// A product whose rows have adapters: it adds them in its sums. Only tiles of bytes do not: there they are added to its rows, and since what
// they add comes before the gate, a gated product waits in memory, some rows at a time.
// `run` computes a product of P's kind; T: of its x and y. `adapters`: an AdapterSide, `of_rows`: slots; null where the step has none.
template <class T, class P, class Run>
inline void run_adapted(const P& p, const void* adapters, const void* of_rows, const Run& run) {
    if (!adapters || !of_rows) return run(p);
    const AdapterSide& side = *static_cast<const AdapterSide*>(adapters);
    const int32_t* slots = static_cast<const int32_t*>(of_rows);
    if (!any_touches(side, slots, p.M)) return run(p);
    const T* x = static_cast<const T*>(p.x);
    T* y = static_cast<T*>(p.y);
#if !defined(__AMX_BF16__)
    const AddedSums added = added_in_sums<typename LayoutOf<T, P>::Type>(Deltas<T>{side, slots, x, y, p.M, p.ldx, p.ldy});
    P with = p;
    with.in_sums = &added;
    run(with);
#else
    if constexpr (std::is_base_of<Product, P>::value) {
        const Added added = added_in_tiles(Deltas<T>{side, slots, x, y, p.M, p.ldx, p.ldy});
        P with = p;
        if (!added.blocks.empty()) with.added = &added;
        return run(with);
    }
    if (p.epilogue != SILU_MUL) {
        run(p);
        add_deltas(Deltas<T>{side, slots, x, y, p.M, p.ldx, p.ldy});
        return;
    }
    for (int64_t m = 0; m < p.M; m += GATED_ROWS) {
        P some = p;
        some.M = std::min(GATED_ROWS, p.M - m), some.ldy = p.N, some.epilogue = PLAIN;
        T* both = static_cast<T*>(scratch(3, size_t(some.M * p.N) * sizeof(T)));
        some.x = x + m * p.ldx, some.y = both;
        run(some);
        add_deltas(Deltas<T>{side, slots + m, x + m * p.ldx, both, some.M, p.ldx, p.N});
        gate_halves(both, y + m * p.ldy, some.M, p.N / 2, p.ldy);
    }
#endif
}

}  // namespace pagoda

// Attention of rows with one query each over pages where they lie.
//
// A piece of work is one kv head of one row with the query heads that share it. Keys pass once, STRETCH at a time: scores, their running
// maximum and sum (online softmax), then the values weighted. The order depends on the row's own length alone, so that its result does
// not depend on its batch. T is float or bf16; computed in float32.
#pragma once
#include <algorithm>

#include "parallel.h"
#include "vec.h"

namespace pagoda {

constexpr int64_t STRETCH = 64;
constexpr int64_t MOST_DIM = 256;

template <class T>
struct DecodeAttention {
    const T* query;  // [rows, heads, D], rows ldq apart
    const T* cache;  // [2, kv_heads, total_slots, D]
    const int32_t* table;  // [rows, pages]
    const int32_t* lengths;  // [rows]: of the context, the query's own token included; 0: padding, the result is zeros
    T* out;  // [rows, heads, D]
    int64_t rows, heads, kv_heads, D, total_slots, pages, page, ldq;
    float scale;
    int64_t window;  // keys that a query sees, itself included; 0: all
};

template <class T, int G>
inline void attend_group(const DecodeAttention<T>& a, int64_t row, int64_t kv_head) {
    const int64_t D = a.D, length = a.lengths[row], begin = a.window > 0 && length > a.window ? length - a.window : 0;
    const T* keys = a.cache + kv_head * a.total_slots * D;
    const T* values = keys + a.kv_heads * a.total_slots * D;
    const int32_t* table = a.table + row * a.pages;
    alignas(64) float query[G][MOST_DIM], mixed[G][MOST_DIM], scores[G][STRETCH], most_yet[G], total[G];
    int64_t places[STRETCH];
    const int64_t first_head = kv_head * G;
    for (int g = 0; g < G; g++) {
        const T* q = a.query + row * a.ldq + (first_head + g) * D;
        for (int64_t d = 0; d < D; d += W) {
            store(query[g] + d, load(q + d) * broadcast(a.scale));
            store(mixed[g] + d, broadcast(0.0f));
        }
        most_yet[g] = -INFINITY;
        total[g] = 0.0f;
    }
    for (int64_t start = begin / STRETCH * STRETCH; start < length; start += STRETCH) {
        const int64_t from = std::max(start, begin), to = std::min(start + STRETCH, length), count = to - from;
        for (int64_t i = 0, at = from; i < count; i++, at++) places[i] = (int64_t(table[at / a.page]) * a.page + at % a.page) * D;
        for (int64_t i = 0; i < count; i++) {
            const T* key = keys + places[i];
            V sums[G];
            for (int g = 0; g < G; g++) sums[g] = broadcast(0.0f);
            for (int64_t d = 0; d < D; d += W) {
                V k = load(key + d);
                for (int g = 0; g < G; g++) sums[g] = fma(k, load(query[g] + d), sums[g]);
            }
            for (int g = 0; g < G; g++) scores[g][i] = sum(sums[g]);
        }
        for (int g = 0; g < G; g++) {
            for (int64_t i = count; i < STRETCH; i++) scores[g][i] = -INFINITY;
            V most = load(scores[g]);
            for (int64_t i = W; i < STRETCH; i += W) most = max(most, load(scores[g] + i));
            const float now = std::max(most_yet[g], highest(most)), shrink = std::exp(most_yet[g] - now);
            V sums = broadcast(0.0f);
            for (int64_t i = 0; i < STRETCH; i += W) {  // past the end: e^-87, which no sum in float32 notices and no value is weighted with
                V p = exponential(load(scores[g] + i) - broadcast(now));
                store(scores[g] + i, p);
                sums += p;
            }
            total[g] = total[g] * shrink + sum(sums);
            most_yet[g] = now;
            if (shrink != 1.0f)
                for (int64_t d = 0; d < D; d += W) store(mixed[g] + d, load(mixed[g] + d) * broadcast(shrink));
        }
        for (int64_t d = 0; d < D; d += W) {
            V sums[G];
            for (int g = 0; g < G; g++) sums[g] = load(mixed[g] + d);
            for (int64_t i = 0; i < count; i++) {
                V v = load(values + places[i] + d);
                for (int g = 0; g < G; g++) sums[g] = fma(broadcast(scores[g][i]), v, sums[g]);
            }
            for (int g = 0; g < G; g++) store(mixed[g] + d, sums[g]);
        }
    }
    for (int g = 0; g < G; g++) {
        T* out = a.out + (row * a.heads + first_head + g) * D;
        V share = broadcast(length > 0 ? 1.0f / total[g] : 0.0f);
        for (int64_t d = 0; d < D; d += W) store(out + d, load(mixed[g] + d) * share);
    }
}

template <class T, int G>
inline void attend_rows(const DecodeAttention<T>& a) {
    parallel_for(a.rows * a.kv_heads, [&](int64_t piece) { attend_group<T, G>(a, piece / a.kv_heads, piece % a.kv_heads); });
}

// False: this many query heads share a kv head in no instance here; the caller asks first.
template <class T>
inline bool decode_attention(const DecodeAttention<T>& a) {
    switch (a.heads / a.kv_heads) {
        case 1: attend_rows<T, 1>(a); return true;
        case 2: attend_rows<T, 2>(a); return true;
        case 3: attend_rows<T, 3>(a); return true;
        case 4: attend_rows<T, 4>(a); return true;
        case 5: attend_rows<T, 5>(a); return true;
        case 6: attend_rows<T, 6>(a); return true;
        case 7: attend_rows<T, 7>(a); return true;
        case 8: attend_rows<T, 8>(a); return true;
        case 16: attend_rows<T, 16>(a); return true;
        default: return false;
    }
}

}  // namespace pagoda

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

template <class T>
inline int64_t first_key(const DecodeAttention<T>& a, int64_t length) {
    return a.window > 0 && length > a.window ? length - a.window : 0;
}

// Where the keys `from` … `from + count` of a sequence begin, in elements from its head's first.
inline void place_keys(const int32_t* table, int64_t page_size, int64_t D, int64_t from, int64_t count, int64_t* places) {
    for (int64_t i = 0, page = from / page_size, within = from % page_size; i < count; page++, within = 0)
        for (int64_t place = (int64_t(table[page]) * page_size + within) * D; within < page_size && i < count; within++, place += D)
            places[i++] = place;
}

// Adds values, weighted, to columns d … d + N * W of `mixed`, which stay in registers meanwhile.
template <class T, int G, int N>
inline void weigh(const T* values, const int64_t* places, const float (*scores)[STRETCH], int64_t count, int64_t d, float (*mixed)[MOST_DIM]) {
    V sums[G][N];
    for (int g = 0; g < G; g++)
        for (int n = 0; n < N; n++) sums[g][n] = load(mixed[g] + d + n * W);
    for (int64_t i = 0; i < count; i++) {
        V value[N];
        for (int n = 0; n < N; n++) value[n] = load(values + places[i] + d + n * W);
        for (int g = 0; g < G; g++) {
            V weight = broadcast(scores[g][i]);
            for (int n = 0; n < N; n++) sums[g][n] = fma(weight, value[n], sums[g][n]);
        }
    }
    for (int g = 0; g < G; g++)
        for (int n = 0; n < N; n++) store(mixed[g] + d + n * W, sums[g][n]);
}

template <class T, int G>
inline void attend_group(const DecodeAttention<T>& a, int64_t row, int64_t kv_head) {
    const int64_t D = a.D, length = a.lengths[row], begin = first_key(a, length);
    const T* keys = a.cache + kv_head * a.total_slots * D;
    const T* values = keys + a.kv_heads * a.total_slots * D;
    const int32_t* table = a.table + row * a.pages;
    alignas(64) float query[G][MOST_DIM], mixed[G][MOST_DIM], scores[G][STRETCH], most_yet[G], total[G];
    int64_t places[STRETCH];
    constexpr int CHUNK = G <= 4 ? 4 : G <= 8 ? 2 : 1;  // vectors of values at once: G times as many sums
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
        place_keys(table, a.page, D, from, count, places);
        for (int64_t i = 0; i < count; i++)  // values are needed next, from pages that no hardware guesses
            for (int64_t byte = 0; byte < D * int64_t(sizeof(T)); byte += 64)
                _mm_prefetch(reinterpret_cast<const char*>(values + places[i]) + byte, _MM_HINT_T0);
        for (int64_t i = 0; i < count; i += W) {
            V sums[G][W];  // past the end: the last key again, whose score is replaced below
            for (int key = 0; key < W; key++) {
                const T* at = keys + places[std::min(i + key, count - 1)];
                V acc[G];
                for (int g = 0; g < G; g++) acc[g] = broadcast(0.0f);
                for (int64_t d = 0; d < D; d += W) {
                    V k = load(at + d);
                    for (int g = 0; g < G; g++) acc[g] = fma(k, load(query[g] + d), acc[g]);
                }
                for (int g = 0; g < G; g++) sums[g][key] = acc[g];
            }
            for (int g = 0; g < G; g++) store(scores[g] + i, sum_each(sums[g]));
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
        int64_t d = 0;
        for (; d + CHUNK * W <= D; d += CHUNK * W) weigh<T, G, CHUNK>(values, places, scores, count, d, mixed);
        for (; d < D; d += W) weigh<T, G, 1>(values, places, scores, count, d, mixed);
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

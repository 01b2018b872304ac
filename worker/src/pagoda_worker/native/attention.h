// Attention of rows with one query each over pages where they lie.
//
// A piece of work is one kv head of one row with the query heads that share it. Keys pass once, STRETCH at a time: scores, their running
// maximum and sum (online softmax), then the values weighted. The order depends on the row's own length alone, so that its result does
// not depend on its batch. T is float or bf16, S what the cache holds: T, or quantized rows, whose scales multiply scores and weights. Computed
// in float32.
#pragma once
#include <algorithm>

#include "kv_cache.h"
#include "parallel.h"

namespace pagoda {

constexpr int64_t STRETCH = 64;
constexpr int64_t MOST_DIM = 256;

template <class T, class S>
struct DecodeAttention {
    const T* query;  // [rows, heads, D], rows ldq apart
    const S* cache;  // [2, kv_heads, …], see CacheLayout
    const int32_t* table;  // [rows, pages]
    const int32_t* lengths;  // [rows]: of the context, the query's own token included; 0: padding, the result is zeros
    T* out;  // [rows, heads, D]
    int64_t rows, heads, kv_heads, D, total_slots, pages, page, ldq;
    float scale;
    int64_t window;  // keys that a query sees, itself included; 0: all
};

template <class T, class S>
inline int64_t first_key(const DecodeAttention<T, S>& a, int64_t length) {
    return a.window > 0 && length > a.window ? length - a.window : 0;
}

// Up to STRETCH keys of one kv head of one row; keys and values lie at `keys` and `values` + places[i].
template <class S>
struct Stretch {
    const S *keys, *values;
    int64_t from = 0, count = 0;
    int64_t places[STRETCH], scale_places[QUANTIZED<S> ? STRETCH : 1];  // the latter behind `keys` and `values` + CacheLayout::scales()
};

// The stretch of a piece (row, kv head) that holds the key `from` and those behind it. Empty past the last piece and past a row's end.
template <class T, class S>
inline void find_stretch(const DecodeAttention<T, S>& a, int64_t piece, int64_t from, Stretch<S>& found) {
    const CacheLayout<S> layout{a.D, a.page, a.total_slots};
    const int64_t row = piece / a.kv_heads;
    found.count = row < a.rows ? std::max<int64_t>(0, std::min((from / STRETCH + 1) * STRETCH, int64_t(a.lengths[row])) - from) : 0;
    if (found.count == 0) return;
    found.keys = a.cache + piece % a.kv_heads * layout.head();
    found.values = found.keys + a.kv_heads * layout.head();
    found.from = from;
    place_rows(a.table + row * a.pages, a.page, layout.block(), a.D, from, found.count, found.places);
    if constexpr (QUANTIZED<S>) {
        place_rows(a.table + row * a.pages, a.page, layout.block(), sizeof(bf16), from, found.count, found.scale_places);
        for (int64_t i = 0; i < found.count; i += std::min<int64_t>(a.page, STRETCH / 4))
            for (const S* side : {found.keys, found.values})
                _mm_prefetch(reinterpret_cast<const char*>(side + layout.scales() + found.scale_places[i]), _MM_HINT_T0);
    }
}

// What is needed soon is asked for one place at a time, between other work: it lies in pages that no hardware guesses, and a core can wait for few
// lines at once.
template <class T>
inline void prefetch(const T* at, int64_t D) {
    for (int64_t byte = 0; byte < D * int64_t(sizeof(T)); byte += 64) _mm_prefetch(reinterpret_cast<const char*>(at) + byte, _MM_HINT_T0);
}

// Adds values, weighted, to columns d … d + N * W of `mixed`, which stay in registers meanwhile.
template <class S, int G, int N>
inline void weigh(const Stretch<S>& s, const float (*scores)[STRETCH], int64_t d, float (*mixed)[MOST_DIM], const Stretch<S>& next, int64_t D) {
    V sums[G][N];
    for (int g = 0; g < G; g++)
        for (int n = 0; n < N; n++) sums[g][n] = load(mixed[g] + d + n * W);
    for (int64_t i = 0; i < s.count; i++) {
        if (d == 0 && i < next.count) prefetch(next.keys + next.places[i], D);
        V value[N];
        for (int n = 0; n < N; n++) value[n] = load(s.values + s.places[i] + d + n * W);
        for (int g = 0; g < G; g++) {
            V weight = broadcast(scores[g][i]);
            for (int n = 0; n < N; n++) sums[g][n] = fma(weight, value[n], sums[g][n]);
        }
    }
    for (int g = 0; g < G; g++)
        for (int n = 0; n < N; n++) store(mixed[g] + d + n * W, sums[g][n]);
}

template <class T, class S, int G>
inline void attend_group(const DecodeAttention<T, S>& a, int64_t piece) {
    const int64_t D = a.D, row = piece / a.kv_heads, first_head = piece % a.kv_heads * G, length = a.lengths[row];
    alignas(64) float query[G][MOST_DIM], mixed[G][MOST_DIM], scores[G][STRETCH], most_yet[G], total[G];
    Stretch<S> two[2], *here = &two[0], *next = &two[1];
    [[maybe_unused]] alignas(64) float key_scales[QUANTIZED<S> ? STRETCH : 1], value_scales[QUANTIZED<S> ? STRETCH : 1];
    constexpr int CHUNK = G <= 4 ? 4 : G <= 8 ? 2 : 1;  // vectors of values at once: G times as many sums
    for (int g = 0; g < G; g++) {
        const T* q = a.query + row * a.ldq + (first_head + g) * D;
        for (int64_t d = 0; d < D; d += W) {
            store(query[g] + d, load(q + d) * broadcast(a.scale));
            store(mixed[g] + d, broadcast(0.0f));
        }
        most_yet[g] = -INFINITY;
        total[g] = 0.0f;
    }
    for (find_stretch(a, piece, first_key(a, length), *here); here->count > 0; std::swap(here, next)) {
        const int64_t count = here->count;
        find_stretch(a, piece, here->from + count, *next);
        const bool ends = next->count == 0;
        if constexpr (QUANTIZED<S>) {
            const int64_t behind = CacheLayout<S>{D, a.page, a.total_slots}.scales();
            load_scales(here->keys + behind, here->scale_places, count, STRETCH, key_scales);
            load_scales(here->values + behind, here->scale_places, count, STRETCH, value_scales);
        }
        if (ends) {  // most likely this thread's next piece
            const int64_t likely = piece + team.threads, its_row = likely / a.kv_heads;
            find_stretch(a, likely, its_row < a.rows ? first_key(a, a.lengths[its_row]) : 0, *next);
        }
        for (int64_t i = 0; i < count; i += W) {
            V sums[G][W];  // past the end: the last key again, whose score is replaced below
            for (int key = 0; key < W; key++) {
                const int64_t place = here->places[std::min(i + key, count - 1)];
                const S* at = here->keys + place;
                prefetch(here->values + place, D);
                V acc[G];
                for (int g = 0; g < G; g++) acc[g] = broadcast(0.0f);
                for (int64_t d = 0; d < D; d += W) {
                    V k = load(at + d);
                    for (int g = 0; g < G; g++) acc[g] = fma(k, load(query[g] + d), acc[g]);
                }
                for (int g = 0; g < G; g++) sums[g][key] = acc[g];
            }
            for (int g = 0; g < G; g++) {
                V summed = sum_each(sums[g]);
                if constexpr (QUANTIZED<S>) summed = summed * load(key_scales + i);
                store(scores[g] + i, summed);
            }
        }
        for (int g = 0; g < G; g++) {
            for (int64_t i = count; i < STRETCH; i++) scores[g][i] = -INFINITY;
            V most = load(scores[g]);
            for (int64_t i = W; i < STRETCH; i += W) most = max(most, load(scores[g] + i));
            const float now = std::max(most_yet[g], highest(most)), shrink = std::exp(most_yet[g] - now);
            V sums = broadcast(0.0f);
            for (int64_t i = 0; i < STRETCH; i += W) {  // past the end: e^-87, which no sum in float32 notices and no value is weighted with
                V p = exponential(load(scores[g] + i) - broadcast(now));
                sums += p;
                if constexpr (QUANTIZED<S>) p = p * load(value_scales + i);
                store(scores[g] + i, p);
            }
            total[g] = total[g] * shrink + sum(sums);
            most_yet[g] = now;
            if (shrink != 1.0f)
                for (int64_t d = 0; d < D; d += W) store(mixed[g] + d, load(mixed[g] + d) * broadcast(shrink));
        }
        int64_t d = 0;
        for (; d + CHUNK * W <= D; d += CHUNK * W) weigh<S, G, CHUNK>(*here, scores, d, mixed, *next, D);
        for (; d < D; d += W) weigh<S, G, 1>(*here, scores, d, mixed, *next, D);
        if (ends) break;
    }
    for (int g = 0; g < G; g++) {
        T* out = a.out + (row * a.heads + first_head + g) * D;
        V share = broadcast(length > 0 ? 1.0f / total[g] : 0.0f);
        for (int64_t d = 0; d < D; d += W) store(out + d, load(mixed[g] + d) * share);
    }
}

template <class T, class S, int G>
inline void attend_rows(const DecodeAttention<T, S>& a) {
    parallel_for(a.rows * a.kv_heads, [&](int64_t piece) { attend_group<T, S, G>(a, piece); });
}

// False: this many query heads share a kv head in no instance here; the caller asks first.
template <class T, class S>
inline bool decode_attention(const DecodeAttention<T, S>& a) {
    switch (a.heads / a.kv_heads) {
        case 1: attend_rows<T, S, 1>(a); return true;
        case 2: attend_rows<T, S, 2>(a); return true;
        case 3: attend_rows<T, S, 3>(a); return true;
        case 4: attend_rows<T, S, 4>(a); return true;
        case 5: attend_rows<T, S, 5>(a); return true;
        case 6: attend_rows<T, S, 6>(a); return true;
        case 7: attend_rows<T, S, 7>(a); return true;
        case 8: attend_rows<T, S, 8>(a); return true;
        case 16: attend_rows<T, S, 16>(a); return true;
        default: return false;
    }
}

}  // namespace pagoda

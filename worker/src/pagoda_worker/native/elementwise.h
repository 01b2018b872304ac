// What stands between the products: norm, rotary embedding with the write into the cache, gate. T is float or bf16; computed in float32.
#pragma once
#include <algorithm>

#include "kv_cache.h"
#include "parallel.h"

namespace pagoda {

constexpr int64_t ROWS_PER_PIECE = 8;

template <class Body>
inline void rows_in_parallel(int64_t rows, const Body& body) {
    parallel_for((rows + ROWS_PER_PIECE - 1) / ROWS_PER_PIECE, [&](int64_t piece) {
        for (int64_t r = piece * ROWS_PER_PIECE; r < std::min(rows, (piece + 1) * ROWS_PER_PIECE); r++) body(r);
    });
}

// out[r] = x[r] / rms(x[r]) * weight. One row; size must be a multiple of W.
template <class T>
inline void rms_norm_row(const T* x, const T* weight, T* out, int64_t size, float eps) {
    V squares = broadcast(0.0f);
    for (int64_t i = 0; i < size; i += W) {
        V v = load(x + i);
        squares = fma(v, v, squares);
    }
    V scale = broadcast(1.0f / std::sqrt(sum(squares) / float(size) + eps));
    for (int64_t i = 0; i < size; i += W) store(out + i, load(x + i) * scale * load(weight + i));
}

template <class T>
inline void rms_norm(const T* x, const T* weight, T* out, int64_t rows, int64_t size, int64_t ldx, float eps) {
    rows_in_parallel(rows, [&](int64_t r) { rms_norm_row(x + r * ldx, weight, out + r * size, size, eps); });
}

// heads [rows, q_heads + 2 * kv_heads, D]: queries and keys are normed (where weights are given) and rotated in place, keys and values
// written to cache [2, kv_heads, …] (see CacheLayout) at slots[r]; a negative slot is padding and written nowhere. cos and sin [rows, D], sin's
// first half negated.
template <class T, class S>
inline void rotate_and_store(T* heads, const T* cos, const T* sin, const T* q_norm, const T* k_norm, float eps, S* cache, const int64_t* slots,
                             int64_t rows, int64_t q_heads, int64_t kv_heads, const CacheLayout<S>& layout) {
    const int64_t D = layout.D, half = D / 2, all = q_heads + 2 * kv_heads;
    rows_in_parallel(rows, [&](int64_t r) {
        for (int64_t h = 0; h < q_heads + kv_heads; h++) {
            T* head = heads + (r * all + h) * D;
            const T* weight = h < q_heads ? q_norm : k_norm;
            if (weight) rms_norm_row(head, weight, head, D, eps);
            for (int64_t i = 0; i < half; i += W) {
                V low = load(head + i), high = load(head + half + i);
                store(head + i, fma(low, load(cos + r * D + i), high * load(sin + r * D + i)));
                store(head + half + i, fma(high, load(cos + r * D + half + i), low * load(sin + r * D + half + i)));
            }
        }
        if (slots[r] < 0) return;
        for (int64_t h = 0; h < 2 * kv_heads; h++) {
            const T* row = heads + (r * all + q_heads + h) * D;
            if constexpr (QUANTIZED<S>) {
                const int64_t within = slots[r] % layout.page;
                S* block = cache + h * layout.head() + slots[r] / layout.page * layout.block();
                quantize_row(row, D, block + within * D, reinterpret_cast<bf16*>(block + layout.scales()) + within);
            } else {
                std::memcpy(cache + h * layout.head() + slots[r] * D, row, D * sizeof(T));
            }
        }
    });
}

}  // namespace pagoda

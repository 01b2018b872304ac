// What a KV cache holds and where, as layers/kv_cache.py has it: rows of float or bf16, or quantized ones with a scale each.
#pragma once
#include <algorithm>
#include <type_traits>

#include "vec.h"

namespace pagoda {

struct int8 {
    int8_t value;
};
struct e4m3 {
    uint8_t bits;
};

template <class S>
constexpr bool QUANTIZED = std::is_same_v<S, int8> || std::is_same_v<S, e4m3>;
// Largest magnitude of a value, and what `load` leaves to the scale: it reads e4m3 through fp16, whose exponents are 8 higher.
template <class S>
constexpr float LARGEST = std::is_same_v<S, int8> ? 127.0f : 448.0f;
template <class S>
constexpr float UNIT = std::is_same_v<S, e4m3> ? 256.0f : 1.0f;

using Integers = int32_t __attribute__((vector_size(W * 4)));

#if defined(__AVX512F__)
inline V load(const int8* p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))); }
inline V load(const e4m3* p) {  // the sign is carried into the upper byte; its copy beside it makes room for fp16's larger exponent
    __m256i wide = _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 7);
    return _mm512_cvtph_ps(_mm256_and_si256(wide, _mm256_set1_epi16(int16_t(0xBFFF))));
}
inline Integers nearest(V v) { return (Integers)_mm512_cvtps_epi32(v); }
inline void store_low_bytes(void* p, Integers v) { _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8((__m512i)v)); }
#else
inline V load(const int8* p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))); }
inline V load(const e4m3* p) {
    __m128i wide = _mm_slli_epi16(_mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))), 7);
    return _mm256_cvtph_ps(_mm_and_si128(wide, _mm_set1_epi16(int16_t(0xBFFF))));
}
inline Integers nearest(V v) { return (Integers)_mm256_cvtps_epi32(v); }
inline void store_low_bytes(void* p, Integers v) {
    const __m256i lowest = _mm256_set1_epi32(0x0C080400);
    __m256i each = _mm256_shuffle_epi8((__m256i)v, lowest);
    _mm_storel_epi64(static_cast<__m128i*>(p), _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(each, _mm256_setr_epi32(0, 4, 0, 0, 0, 0, 0, 0))));
}
#endif
inline V magnitude(V v) { return (V)((Integers)v & 0x7FFFFFFF); }

// Ties to even; v is at most LARGEST.
inline void store(int8* p, V v) { store_low_bytes(p, nearest(v)); }
inline void store(e4m3* p, V v) {
    const Integers sign = (Integers)((Integers)v >> 24) & 0x80, bits = (Integers)magnitude(v);
    const Integers normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3);
    const Integers small = nearest(magnitude(v) * broadcast(512.0f));  // below 2^-6: multiples of 2^-9
    store_low_bytes(p, sign | (bits < 0x3C800000 ? small : normal));
}

// One row of D values and its scale. A row that is not finite has a scale that is not: it comes out as NaN.
template <class S, class T>
inline void quantize_row(const T* row, int64_t D, S* values, bf16* scale) {
    V most = broadcast(0.0f), none = broadcast(0.0f);
    for (int64_t d = 0; d < D; d += W) {
        V v = load(row + d);
        most = max(most, magnitude(v));
        none += v * broadcast(0.0f);  // a maximum forgets NaN, a sum does not
    }
    put(scale, highest(most) / LARGEST<S> + sum(none));
    const float divisor = to_float(*scale);
    if (!(divisor > 0.0f)) {
        std::memset(values, 0, D);
        return;
    }
    const V largest = broadcast(LARGEST<S>), least = broadcast(-LARGEST<S>);
    for (int64_t d = 0; d < D; d += W) store(values + d, max(min(load(row + d) / broadcast(divisor), largest), least));
}

// Sizes of a cache [2, kv_heads, …] of one layer, in elements of S: of a plain one rows of D, of a quantized one blocks of `page` rows of D bytes
// and their scales.
template <class S>
struct CacheLayout {
    int64_t D, page, total_slots;
    int64_t block() const { return page * (QUANTIZED<S> ? D + int64_t(sizeof(bf16)) : D); }
    int64_t head() const { return total_slots / page * block(); }
    // From a head's first element to the first scale of block 0; one's own place among the scales is placed as rows of sizeof(bf16) are.
    int64_t scales() const { return page * D; }
};

// Where `count` rows of `size` elements begin that belong to the keys `from` … of a sequence, in elements from their head's first.
inline void place_rows(const int32_t* table, int64_t page_size, int64_t block, int64_t size, int64_t from, int64_t count, int64_t* places) {
    for (int64_t i = 0, page = from / page_size, within = from % page_size; i < count; page++, within = 0)
        for (int64_t place = int64_t(table[page]) * block + within * size; within < page_size && i < count; within++, place += size) places[i++] = place;
}

// The scales of `count` rows as numbers that `load` of their values is to be multiplied with; zeros behind them up to `room`.
template <class S>
inline void load_scales(const S* scales, const int64_t* places, int64_t count, int64_t room, float* loaded) {
    for (int64_t i = 0; i < count; i++) loaded[i] = to_float(*reinterpret_cast<const bf16*>(scales + places[i])) * UNIT<S>;
    std::fill(loaded + count, loaded + room, 0.0f);
}

}  // namespace pagoda

// Rows of x as signed bytes, a scale for each row: what products of quantized weights multiply. And vectors of bytes and whole numbers.
#pragma once
#include <algorithm>

#include "vec.h"

namespace pagoda {

constexpr int64_t STEP_8 = 64;    // k of one tile of bytes
constexpr int64_t TILE_8 = 1024;  // bytes

// x as integers: tile after tile, [M / tile_rows][K / 64][tile_rows][64]. Inputs past the end are zeros; so are rows, where M is above 16.
struct Activations {
    int8_t* values;
    float* scales;  // [rows, whole tiles]
    float* sums;    // [rows, groups] of the integers: whole numbers below 2^24
    int64_t steps, groups, tile_rows;

    int64_t step_bytes() const { return tile_rows * STEP_8; }  // from one step of a row to the next
    int8_t* row(int64_t m) const { return values + m / tile_rows * steps * step_bytes() + m % tile_rows * STEP_8; }
};

#if defined(__AVX512F__)
inline V absolute(V v) { return _mm512_abs_ps(v); }
inline void store_bytes(int8_t* p, V v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)));
}
inline Raw no_bytes() { return _mm512_setzero_si512(); }
inline Raw load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline void keep_bytes(uint8_t* p, Raw v) { _mm512_storeu_si512(p, v); }
inline Raw low_nibbles(Raw v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
inline Raw high_nibbles(Raw v) { return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15)); }
inline V to_floats(Raw v) { return _mm512_cvtepi32_ps(v); }
inline Raw whole_everywhere(int32_t x) { return _mm512_set1_epi32(x); }
inline Raw load_whole(const int32_t* p) { return _mm512_loadu_si512(p); }
inline void keep_whole(int32_t* p, Raw v) { _mm512_storeu_si512(p, v); }
inline Raw less(Raw a, Raw b) { return _mm512_sub_epi32(a, b); }
inline V bytes_to_floats(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline Raw four_everywhere(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
}
// acc + Σ of four unsigned bytes times four signed ones, in each place of 32 bits.
inline Raw dot4(Raw acc, Raw w, Raw x) {
#if defined(__AVX512VNNI__)
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));  // by its intrinsic GCC 12 copies sums from register to register and into memory
    return acc;
#else
    Raw even_w = _mm512_and_si512(w, _mm512_set1_epi16(255)), odd_w = _mm512_srli_epi16(w, 8);
    Raw even_x = _mm512_srai_epi16(_mm512_slli_epi16(x, 8), 8), odd_x = _mm512_srai_epi16(x, 8);
    return _mm512_add_epi32(acc, _mm512_add_epi32(_mm512_madd_epi16(even_w, even_x), _mm512_madd_epi16(odd_w, odd_x)));
#endif
}
#else
inline V absolute(V v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
inline void store_bytes(int8_t* p, V v) {
    Raw whole = _mm256_cvtps_epi32(v);
    __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(half, half));
}
inline Raw no_bytes() { return _mm256_setzero_si256(); }
inline Raw load_bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void keep_bytes(uint8_t* p, Raw v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
inline Raw low_nibbles(Raw v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
inline Raw high_nibbles(Raw v) { return _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15)); }
inline V to_floats(Raw v) { return _mm256_cvtepi32_ps(v); }
inline Raw whole_everywhere(int32_t x) { return _mm256_set1_epi32(x); }
inline Raw load_whole(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void keep_whole(int32_t* p, Raw v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
inline Raw less(Raw a, Raw b) { return _mm256_sub_epi32(a, b); }
inline V bytes_to_floats(const uint8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline Raw four_everywhere(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
}
// Not maddubs: its sums of two products stop at 2^15.
inline Raw dot4(Raw acc, Raw w, Raw x) {
    Raw even_w = _mm256_and_si256(w, _mm256_set1_epi16(255)), odd_w = _mm256_srli_epi16(w, 8);
    Raw even_x = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8), odd_x = _mm256_srai_epi16(x, 8);
    return _mm256_add_epi32(acc, _mm256_add_epi32(_mm256_madd_epi16(even_w, even_x), _mm256_madd_epi16(odd_w, odd_x)));
}
#endif

constexpr float SMALLEST_SCALE = 1e-12f;  // of a row of zeros

#if defined(__AVX512F__)
// The largest |x| of whole vectors; of bf16 the bits without the sign are in the order of what they mean.
inline float largest_of(const float* x, int64_t whole) {
    V most[2] = {broadcast(0.0f), broadcast(0.0f)};
    for (int64_t k = 0; k < whole; k += W) most[k / W % 2] = max(absolute(load(x + k)), most[k / W % 2]);
    return highest(max(most[0], most[1]));
}
inline float largest_of(const bf16* x, int64_t whole) {
    Raw most = _mm512_setzero_si512(), magnitude = _mm512_set1_epi16(0x7FFF);
    int64_t k = 0;
    for (; k + 32 <= whole; k += 32) most = _mm512_max_epu16(most, _mm512_and_si512(load_pairs(x + k), magnitude));
    float largest = highest(max(even(most), odd(most)));
    return k < whole ? std::max(largest, highest(absolute(load(x + k)))) : largest;
}
// 64 values times `inverse`, rounded, as bytes.
template <class T>
inline Raw rounded_step(const T* x, V inverse) {
    const auto whole = [&](int i) { return _mm512_cvtps_epi32(load(x + i * W) * inverse); };
    Raw quads = _mm512_packs_epi16(_mm512_packs_epi32(whole(0), whole(1)), _mm512_packs_epi32(whole(2), whole(3)));
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), quads);
}
#else
template <class T>
inline float largest_of(const T* x, int64_t whole) {
    V most = broadcast(0.0f);
    for (int64_t k = 0; k < whole; k += W) most = max(absolute(load(x + k)), most);
    return highest(most);
}
#endif

// One row, ragged ends included.
template <class T>
inline void quantize_row(const T* x, int64_t K, int64_t groups, int64_t group, int8_t* to, int64_t step_bytes, float* scale, float* sums) {
    int64_t whole = K / W * W;
    float largest = largest_of(x, whole);
    for (int64_t k = whole; k < K; k++) largest = std::max(largest, std::fabs(to_float(x[k])));
    *scale = std::max(largest / 127.0f, SMALLEST_SCALE);
    float inverse = 1.0f / *scale;
    bool sums_of_steps = groups == 1 || group % STEP_8 == 0;
    int64_t k = 0;
#if defined(__AVX512F__)
    for (int64_t begin = 0; sums_of_steps && k + STEP_8 <= K; begin += group) {
        Raw sum = no_bytes();
        for (int64_t end = std::min(begin + group, K); k + STEP_8 <= end; k += STEP_8, to += step_bytes) {
            Raw bytes = rounded_step(x + k, broadcast(inverse));
            _mm512_storeu_si512(to, bytes);
            sum = dot4(sum, _mm512_set1_epi8(1), bytes);
        }
        sums[begin / group] += float(_mm512_reduce_add_epi32(sum));
    }
#endif
    alignas(64) int8_t step[STEP_8];
    for (; k < K; k += STEP_8, to += step_bytes) {
        int64_t there = std::min(STEP_8, K - k), i = 0;
        for (; i + W <= there; i += W) store_bytes(step + i, round(load(x + k + i) * broadcast(inverse)));
        for (; i < there; i++) step[i] = int8_t(std::nearbyintf(to_float(x[k + i]) * inverse));
        for (; i < STEP_8; i++) step[i] = 0;
        std::memcpy(to, step, STEP_8);
        if (sums_of_steps) {
            int32_t sum = 0;
            for (int j = 0; j < STEP_8; j++) sum += step[j];
            sums[groups == 1 ? 0 : k / group] += float(sum);
        } else {
            for (int64_t j = 0; j < there; j++) sums[(k + j) / group] += float(step[j]);
        }
    }
}

}  // namespace pagoda

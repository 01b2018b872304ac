// Float vectors as wide as the instruction set has them, with bf16 read and written. Everything is computed in float32.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace pagoda {

struct bf16 {
    uint16_t bits;
};

#if defined(__AVX512F__)
constexpr int W = 16;
using V = __m512;
using Raw = __m512i;
inline V broadcast(float x) { return _mm512_set1_ps(x); }
inline V load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, V v) { _mm512_storeu_ps(p, v); }
inline V load(const bf16* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
inline V max(V a, V b) { return _mm512_max_ps(a, b); }
inline V min(V a, V b) { return _mm512_min_ps(a, b); }
inline float sum(V v) { return _mm512_reduce_add_ps(v); }
inline float highest(V v) { return _mm512_reduce_max_ps(v); }
inline V round(V v) { return _mm512_roundscale_ps(v, 0); }
inline V times_power_of_two(V v, V n) { return _mm512_scalef_ps(v, n); }
inline void store(bf16* p, V v) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(v));
#else
    Raw bits = _mm512_castps_si512(v);
    Raw odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    Raw rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7FFF)), 16);
    Raw quiet = _mm512_set1_epi32(0x7FC0);  // a NaN must stay one: rounding could carry it to infinity
    rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), quiet);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
#endif
}
// Of pairs of bf16, 2 * W of them: those at even and at odd places.
inline Raw load_pairs(const bf16* p) { return _mm512_loadu_si512(p); }
inline V even(Raw pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
inline V odd(Raw pairs) { return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(int(0xFFFF0000)))); }
// The sums, or the highest, of 16 vectors as one: halves meet halves, and each round leaves half as many vectors.
template <class Join>
inline V join_each(const V* v, Join join) {
    V by_two[8], by_four[4];
    for (int i = 0; i < 8; i++)
        by_two[i] = join(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
    for (int i = 0; i < 4; i++) {
        __m512d a = _mm512_castps_pd(by_two[2 * i]), b = _mm512_castps_pd(by_two[2 * i + 1]);
        by_four[i] = join(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    V low = join(_mm512_shuffle_f32x4(by_four[0], by_four[1], 0x88), _mm512_shuffle_f32x4(by_four[0], by_four[1], 0xDD));
    V high = join(_mm512_shuffle_f32x4(by_four[2], by_four[3], 0x88), _mm512_shuffle_f32x4(by_four[2], by_four[3], 0xDD));
    return join(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xDD));
}
#else
constexpr int W = 8;
using V = __m256;
using Raw = __m256i;
inline V broadcast(float x) { return _mm256_set1_ps(x); }
inline V load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, V v) { _mm256_storeu_ps(p, v); }
inline V load(const bf16* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
inline V max(V a, V b) { return _mm256_max_ps(a, b); }
inline V min(V a, V b) { return _mm256_min_ps(a, b); }
inline float sum(V v) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}
inline float highest(V v) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}
template <class Join>
inline V join_each(const V* v, Join join) {
    V by_two[4], by_four[2];
    for (int i = 0; i < 4; i++) by_two[i] = join(_mm256_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm256_unpackhi_ps(v[2 * i], v[2 * i + 1]));
    for (int i = 0; i < 2; i++) {
        __m256d a = _mm256_castps_pd(by_two[2 * i]), b = _mm256_castps_pd(by_two[2 * i + 1]);
        by_four[i] = join(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
    }
    return join(_mm256_permute2f128_ps(by_four[0], by_four[1], 0x20), _mm256_permute2f128_ps(by_four[0], by_four[1], 0x31));
}
inline V round(V v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline V times_power_of_two(V v, V n) {
    return _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23)));
}
inline void store(bf16* p, V v) {
    Raw bits = _mm256_castps_si256(v);
    Raw odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    Raw rounded = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7FFF)), 16);
    Raw nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));  // a NaN must stay one: rounding could carry it to infinity
    rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7FC0), nan);
    Raw packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
inline Raw load_pairs(const bf16* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline V even(Raw pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
inline V odd(Raw pairs) { return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(int(0xFFFF0000)))); }
#endif

inline V sum_each(const V* v) {
    return join_each(v, [](V a, V b) { return a + b; });
}
inline V highest_each(const V* v) {
    return join_each(v, [](V a, V b) { return max(a, b); });
}

inline float to_float(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline float to_float(float x) { return x; }
inline void put(float* p, float x) { *p = x; }
inline void put(bf16* p, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    p->bits = x != x ? 0x7FC0 : uint16_t((bits + ((bits >> 16) & 1) + 0x7FFF) >> 16);
}

// e^x to about 1e-7 of itself: 2^n by the exponent's bits, the rest by a polynomial of degree 5 (Cephes' expf).
inline V exponential(V x) {
    x = min(max(x, broadcast(-87.0f)), broadcast(88.0f));
    V n = round(x * broadcast(1.44269504f));
    x = fma(n, broadcast(-0.693359375f), x);
    x = fma(n, broadcast(2.12194440e-4f), x);
    V y = broadcast(1.9875691500e-4f);
    y = fma(y, x, broadcast(1.3981999507e-3f));
    y = fma(y, x, broadcast(8.3334519073e-3f));
    y = fma(y, x, broadcast(4.1665795894e-2f));
    y = fma(y, x, broadcast(1.6666665459e-1f));
    y = fma(y, x, broadcast(5.0000001201e-1f));
    y = fma(y, x * x, x + broadcast(1.0f));
    return times_power_of_two(y, n);
}
inline V silu(V x) { return x / (broadcast(1.0f) + exponential(broadcast(0.0f) - x)); }

}  // namespace pagoda

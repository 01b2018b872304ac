// Attention of chunks of prompts over pages where they lie, causal.
//
// A piece of work is a tile of a chunk's tokens and one kv head: rows are tokens by the query heads that share it. Keys pass STRETCH at a time,
// widened to float32 once for all rows, keys turned on their side: both products are then rows of weights by rows of vectors. Stretches begin
// at multiples of STRETCH of the sequence and a row's sums run in one order, so that its result depends neither on its batch nor on where its
// prompt was cut into chunks. After FlashAttention-2 (Dao, 2023), algorithm 1.
#pragma once
#include <vector>

#include "attention.h"
#include "linear.h"

namespace pagoda {

constexpr int64_t TILE_ROWS = 128;
constexpr int ROWS_AT_ONCE = 6;
#if defined(__AVX512F__)
constexpr int VECTORS_AT_ONCE = 4;
#else
constexpr int VECTORS_AT_ONCE = 2;
#endif

template <class T, class S>
struct PrefillAttention {
    const T* query;          // [tokens, heads, D], rows ldq apart
    const S* cache;          // [2, kv_heads, …], see CacheLayout
    const int32_t* table;    // [sequences, pages]
    const int32_t* starts;   // [sequences + 1]: of each sequence's tokens in query
    const int32_t* lengths;  // [sequences]: of the context, these tokens included
    T* out;                  // [tokens, heads, D]
    int64_t sequences, heads, kv_heads, D, total_slots, pages, page, ldq;
    float scale;
    int64_t window;  // keys that a query sees, itself included; 0: all
};

struct QueryTile {
    int64_t sequence, first, count;  // tokens of the sequence's chunk
};

// c [rows, columns] = or += a [rows, size] · b [size, columns], of which b was laid out for laid_size by laid_columns.
struct Sizes {
    int64_t rows, size, columns, laid_size, laid_columns;
    bool add;
};

// The two products of attention in float32: scores = query · keysᵀ and mixed += weights · values, operands laid out once for all rows of a tile.
struct WideProducts {
    using Value = float;
    static constexpr int64_t ROWS = 8 * ROWS_AT_ONCE;

    // keys → [D, STRETCH]; values → [STRETCH, D]. Past `count`: zeros, since what lies there may not even be a number.
    template <class T>
    static void lay_keys(const T* keys, const int64_t* places, int64_t count, int64_t D, float* laid) {
        for (int64_t i = 0; i < STRETCH; i++)
            for (int64_t d = 0; d < D; d++) laid[d * STRETCH + i] = i < count ? to_float(keys[places[i] + d]) : 0.0f;
    }
    template <class T>
    static void lay_values(const T* values, const int64_t* places, int64_t count, int64_t D, float* laid) {
        for (int64_t i = 0; i < STRETCH; i++)
            for (int64_t d = 0; d < D; d += W) store(laid + i * D + d, i < count ? load(values + places[i] + d) : broadcast(0.0f));
    }

    static void multiply(const Sizes& s, const float* a, const float* b, float* c) {
        int64_t r = 0;
        for (; r + ROWS_AT_ONCE <= s.rows; r += ROWS_AT_ONCE) some_rows<ROWS_AT_ONCE>(s, a + r * s.size, b, c + r * s.columns);
        for (; r < s.rows; r++) some_rows<1>(s, a + r * s.size, b, c + r * s.columns);
    }

  private:
    template <int R>
    static void some_rows(const Sizes& s, const float* a, const float* b, float* c) {
        int64_t n = 0;
        for (; n + VECTORS_AT_ONCE * W <= s.columns; n += VECTORS_AT_ONCE * W) block<R, VECTORS_AT_ONCE>(s, a, b + n, c + n);
        for (; n < s.columns; n += W) block<R, 1>(s, a, b + n, c + n);
    }
    template <int R, int N>
    static void block(const Sizes& s, const float* a, const float* b, float* c) {
        V sums[R][N];
        for (int r = 0; r < R; r++)
            for (int n = 0; n < N; n++) sums[r][n] = s.add ? load(c + r * s.columns + n * W) : broadcast(0.0f);
        for (int64_t k = 0; k < s.size; k++) {
            V vectors[N];
            for (int n = 0; n < N; n++) vectors[n] = load(b + k * s.laid_columns + n * W);
            for (int r = 0; r < R; r++) {
                V weight = broadcast(a[r * s.size + k]);
                for (int n = 0; n < N; n++) sums[r][n] = fma(weight, vectors[n], sums[r][n]);
            }
        }
        for (int r = 0; r < R; r++)
            for (int n = 0; n < N; n++) store(c + r * s.columns + n * W, sums[r][n]);
    }
};

#if defined(__AMX_BF16__)
// The same on AMX: weights are rounded to bf16, sums stay float32. Rows come in whole tiles: buffers have room for 31 more than asked for, and
// those weigh nothing.
struct TileProducts {
    using Value = bf16;
    static constexpr int64_t ROWS = 64;

    // keys → [STRETCH / 16][D / 32][16 pairs of d][16 keys][2]; values → [D / 16][STRETCH / 32][16 pairs of keys][16 d][2]: tiles as linear.h has them.
    static void lay_keys(const bf16* keys, const int64_t* places, int64_t count, int64_t D, bf16* laid) {
        for (int64_t i = 0; i < STRETCH; i += 16)
            for (int64_t d = 0; d < D; d += STEP_K) {
                __m512i rows[16];
                for (int64_t k = 0; k < 16; k++) rows[k] = i + k < count ? _mm512_loadu_si512(keys + places[i + k] + d) : _mm512_setzero_si512();
                turn(rows, laid + (i * D + d * 16));
            }
    }
    static void lay_values(const bf16* values, const int64_t* places, int64_t count, int64_t D, bf16* laid) {
        const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19,
                                                    3, 18, 2, 17, 1, 16, 0);
        for (int64_t i = 0; i < STRETCH; i += 2)
            for (int64_t d = 0; d < D; d += 16) {
                __m256i rows[2];
                for (int64_t j = 0; j < 2; j++)
                    rows[j] = i + j < count ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + places[i + j] + d)) : _mm256_setzero_si256();
                __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(rows[0]), rows[1], 1);
                _mm512_store_si512(laid + (d / 16 * (STRETCH / 2) + i / 2) * 32, _mm512_permutexvar_epi16(interleave, both));
            }
    }

    // 16 rows of 16 pairs → pair after pair, those of all rows side by side.
    static void turn(const __m512i* rows, bf16* turned) {
        __m512i two[16], four[16];
        for (int i = 0; i < 16; i += 2) {
            two[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
            two[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
        }
        for (int i = 0; i < 16; i += 4)
            for (int j = 0; j < 2; j++) {
                four[i + 2 * j] = _mm512_unpacklo_epi64(two[i + j], two[i + j + 2]);
                four[i + 2 * j + 1] = _mm512_unpackhi_epi64(two[i + j], two[i + j + 2]);
            }
        for (int j = 0; j < 4; j++) {  // quarter q of four[i + j]: pair 4 * q + j of rows i … i + 3
            const __m512i even[2] = {_mm512_shuffle_i32x4(four[j], four[4 + j], 0x88), _mm512_shuffle_i32x4(four[8 + j], four[12 + j], 0x88)};
            const __m512i odd[2] = {_mm512_shuffle_i32x4(four[j], four[4 + j], 0xDD), _mm512_shuffle_i32x4(four[8 + j], four[12 + j], 0xDD)};
            _mm512_store_si512(turned + j * 32, _mm512_shuffle_i32x4(even[0], even[1], 0x88));
            _mm512_store_si512(turned + (4 + j) * 32, _mm512_shuffle_i32x4(odd[0], odd[1], 0x88));
            _mm512_store_si512(turned + (8 + j) * 32, _mm512_shuffle_i32x4(even[0], even[1], 0xDD));
            _mm512_store_si512(turned + (12 + j) * 32, _mm512_shuffle_i32x4(odd[0], odd[1], 0xDD));
        }
    }

    static void multiply(const Sizes& s, const bf16* a, const bf16* b, float* c) {
        const int64_t steps = s.size / STEP_K, group = s.laid_size / STEP_K * TILE, stride = s.columns * 4;
        for (int64_t r = 0; r < s.rows; r += 32, a += 32 * s.size, c += 32 * s.columns)
            for (int64_t n = 0; n < s.columns; n += 32) {  // columns may be a multiple of 16 alone: the second half then repeats the first
                const int64_t beside = n + 16 < s.columns ? 16 : 0;
                const bf16 *left = b + n / 16 * group, *right = left + beside / 16 * group;
                float *upper = c + n, *lower = upper + 16 * s.columns;
                if (s.add) {
                    _tile_loadd(0, upper, stride);
                    _tile_loadd(1, upper + beside, stride);
                    _tile_loadd(2, lower, stride);
                    _tile_loadd(3, lower + beside, stride);
                } else {
                    zero_sums();
                }
                for (int64_t step = 0; step < steps; step++) {
                    _tile_loadd(4, a + step * STEP_K, s.size * 2);
                    _tile_loadd(5, a + 16 * s.size + step * STEP_K, s.size * 2);
                    _tile_loadd(6, left + step * TILE, 64);
                    _tile_loadd(7, right + step * TILE, 64);
                    _tile_dpbf16ps(0, 4, 6);
                    _tile_dpbf16ps(1, 4, 7);
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(3, 5, 7);
                }
                _tile_stored(0, upper, stride);
                _tile_stored(1, upper + beside, stride);
                _tile_stored(2, lower, stride);
                _tile_stored(3, lower + beside, stride);
            }
    }
};
#endif

// Which of a row's scores count, to be multiplied with: ones from place n at `up + STRETCH - n`, ones before it at `down + STRETCH - n`.
struct Steps {
    float down[2 * STRETCH], up[2 * STRETCH];
    constexpr Steps() : down(), up() {
        for (int64_t i = 0; i < STRETCH; i++) down[i] = 1.0f, up[i] = 0.0f, down[STRETCH + i] = 0.0f, up[STRETCH + i] = 1.0f;
    }
};
constexpr Steps STEPS;

// What each row of a tile has seen so far. Room for whole groups of W rows.
struct Seen {
    alignas(64) float most[TILE_ROWS + W], total[TILE_ROWS + W];
    Seen() {
        std::fill(most, most + TILE_ROWS + W, -INFINITY);
        std::fill(total, total + TILE_ROWS + W, 0.0f);
    }
};

// What stands for STRETCH quantized keys or values: themselves as numbers, and their scales. Of plain ones nothing: the cache is read itself.
template <class Value, bool QUANTIZED>
struct Widened {};
template <class Value>
struct Widened<Value, true> {
    alignas(64) Value rows[STRETCH * MOST_DIM];
    alignas(64) float scales[STRETCH];
    int64_t places[STRETCH];

    template <class S>
    void take(const S* from, const int64_t* row_places, const S* scales_from, const int64_t* scale_places, int64_t count, int64_t D) {
        for (int64_t i = 0; i < count; i++) {
            places[i] = i * D;
            for (int64_t d = 0; d < D; d += W) store(rows + i * D + d, load(from + row_places[i] + d));
        }
        load_scales(scales_from, scale_places, count, STRETCH, scales);
    }
};

// Which scores count: of row r those from … to.
struct Span {
    int64_t from, to;
};

// Softmax of W rows' `width` scores each, of which a row sees its span, the others being weighted with nothing. `count` rows are there; those past
// them are computed on whatever lies in their place, and not kept. `mixed` [count, D] shrinks to the new maxima. Maxima and sums of all W rows are
// found together: of one alone either costs as much as its exponentials. Scales [width] of quantized keys multiply scores, those of values the
// weights; without, both are null.
template <bool QUANTIZED, class Value>
inline void weigh_scores(const float* scores, int64_t width, float scale, const Span* spans, int64_t count, Value* weights, float* most_yet,
                         float* total, float* mixed, int64_t D, const float* key_scales, const float* value_scales) {
    auto score = [&](int64_t r, int64_t i) {
        if constexpr (QUANTIZED) return load(scores + r * width + i) * load(key_scales + i);
        else return load(scores + r * width + i);
    };
    V each[W];
    for (int64_t r = 0; r < W; r++) {
        const Span span = spans[std::min(r, count - 1)];
        const float *begins = STEPS.up + STRETCH - span.from, *ends = STEPS.down + STRETCH - span.to;
        V most = broadcast(-INFINITY);
        for (int64_t i = 0; i < width; i += W) {
            V hidden = fma(load(begins + i), load(ends + i), broadcast(-1.0f));
            most = max(most, fma(hidden, broadcast(3e38f), score(r, i) * broadcast(scale)));
        }
        each[r] = most;
    }
    const V before = load(most_yet), now = max(before, highest_each(each));
    const V shrink = exponential(before - now) + (now - now);  // exponential() forgets NaN: what is broken must stay so
    alignas(64) float highest[W], shrinks[W];
    store(highest, now);
    store(shrinks, shrink);
    for (int64_t r = 0; r < W; r++) {
        const Span span = spans[std::min(r, count - 1)];
        const float *begins = STEPS.up + STRETCH - span.from, *ends = STEPS.down + STRETCH - span.to;
        const V negative = broadcast(-highest[r]);
        V sums = broadcast(0.0f);
        for (int64_t i = 0; i < width; i += W) {
            V p = exponential(fma(score(r, i), broadcast(scale), negative)) * load(begins + i) * load(ends + i);
            sums += p;
            if constexpr (QUANTIZED) p = p * load(value_scales + i);
            store(weights + r * width + i, p);
        }
        each[r] = sums;
    }
    alignas(64) float totals[W];
    store(totals, fma(load(total), shrink, sum_each(each)));
    std::copy(highest, highest + count, most_yet);  // those past them may be rows that a window keeps for later
    std::copy(totals, totals + count, total);
    for (int64_t r = 0; r < count; r++)
        if (shrinks[r] != 1.0f)
            for (int64_t d = 0; d < D; d += W) store(mixed + r * D + d, load(mixed + r * D + d) * broadcast(shrinks[r]));
}

template <class Products, class T, class S>
inline void attend_tile(const PrefillAttention<T, S>& a, const QueryTile& tile, int64_t kv_head) {
    using Value = typename Products::Value;
    const int64_t D = a.D, G = a.heads / a.kv_heads, rows = tile.count * G, context = a.lengths[tile.sequence];
    const int64_t token0 = a.starts[tile.sequence] + tile.first;  // in query
    const int64_t position0 = context - (a.starts[tile.sequence + 1] - a.starts[tile.sequence]) + tile.first;
    const CacheLayout<S> layout{D, a.page, a.total_slots};
    const S* keys = a.cache + kv_head * layout.head();
    const S* values = keys + a.kv_heads * layout.head();
    Widened<Value, QUANTIZED<S>> wide_keys, wide_values;
    const float *key_scales = nullptr, *value_scales = nullptr;
    constexpr int64_t ROOM = TILE_ROWS + 32;
    alignas(64) float mixed[ROOM * MOST_DIM], scores[(Products::ROWS + 32) * STRETCH];
    alignas(64) Value query[ROOM * MOST_DIM], weights[(Products::ROWS + 32) * STRETCH], laid_keys[MOST_DIM * STRETCH], laid_values[STRETCH * MOST_DIM];
    Seen seen;
    int64_t places[STRETCH];
    for (int64_t r = 0; r < rows; r++) {
        const T* q = a.query + (token0 + r / G) * a.ldq + (kv_head * G + r % G) * D;
        for (int64_t d = 0; d < D; d += W) store(query + r * D + d, load(q + d));
    }
    std::fill(mixed, mixed + rows * D, 0.0f);
    auto begin_of = [&](int64_t row) { return a.window > 0 ? std::max<int64_t>(0, position0 + row / G + 1 - a.window) : 0; };
    const int64_t last = position0 + tile.count - 1;
    for (int64_t start = begin_of(0) / STRETCH * STRETCH; start <= last; start += STRETCH) {
        const int64_t count = std::min(STRETCH, last + 1 - start);
        place_rows(a.table + tile.sequence * a.pages, a.page, layout.block(), D, start, count, places);
        if constexpr (QUANTIZED<S>) {
            int64_t scale_places[STRETCH];
            place_rows(a.table + tile.sequence * a.pages, a.page, layout.block(), sizeof(bf16), start, count, scale_places);
            wide_keys.take(keys, places, keys + layout.scales(), scale_places, count, D);
            wide_values.take(values, places, values + layout.scales(), scale_places, count, D);
            Products::lay_keys(wide_keys.rows, wide_keys.places, count, D, laid_keys);
            Products::lay_values(wide_values.rows, wide_values.places, count, D, laid_values);
            key_scales = wide_keys.scales, value_scales = wide_values.scales;
        } else {
            Products::lay_keys(keys, places, count, D, laid_keys);
            Products::lay_values(values, places, count, D, laid_values);
        }
        // Rows that see any key of this stretch stand side by side.
        const int64_t first = std::max<int64_t>(0, start - position0) * G;
        int64_t end = rows;
        while (end > first && begin_of(end - 1) >= start + STRETCH) end -= G;
        for (int64_t row0 = first, row1; row0 < end; row0 = row1) {
            row1 = std::min(row0 + Products::ROWS, end);
            // Keys after those that the last of these rows sees are left out, by half stretches.
            const int64_t width = position0 + (row1 - 1) / G + 1 - start <= STRETCH / 2 ? STRETCH / 2 : STRETCH;
            Products::multiply({row1 - row0, D, width, D, STRETCH, false}, query + row0 * D, laid_keys, scores);
            for (int64_t r = row0; r < row1; r += W) {
                const int64_t count = std::min<int64_t>(W, row1 - r);
                Span spans[W];
                for (int64_t i = 0; i < count; i++)
                    spans[i] = {std::max<int64_t>(0, begin_of(r + i) - start), std::min(width, position0 + (r + i) / G + 1 - start)};
                weigh_scores<QUANTIZED<S>>(scores + (r - row0) * width, width, a.scale, spans, count, weights + (r - row0) * width, seen.most + r,
                                           seen.total + r, mixed + r * D, D, key_scales, value_scales);
            }
            std::fill(weights + (row1 - row0) * width, weights + (row1 - row0 + 31) * width, Value{});
            Products::multiply({row1 - row0, width, D, STRETCH, D, true}, weights, laid_values, mixed + row0 * D);
        }
    }
    for (int64_t r = 0; r < rows; r++) {
        T* out = a.out + ((token0 + r / G) * a.heads + kv_head * G + r % G) * D;
        V share = broadcast(seen.total[r] > 0 ? 1.0f / seen.total[r] : 0.0f);
        for (int64_t d = 0; d < D; d += W) store(out + d, load(mixed + r * D + d) * share);
    }
}

template <class Products, class T, class S>
inline void attend_tiles(const PrefillAttention<T, S>& a) {
    const int64_t most = std::max<int64_t>(1, TILE_ROWS / (a.heads / a.kv_heads));
    std::vector<QueryTile> tiles;
    for (int64_t s = 0; s < a.sequences; s++) {
        const int64_t tokens = a.starts[s + 1] - a.starts[s];
        for (int64_t first = 0; first < tokens; first += most) tiles.push_back({s, first, std::min(most, tokens - first)});
    }
    parallel_for(int64_t(tiles.size()) * a.kv_heads, [&](int64_t piece) {
#if defined(__AMX_BF16__)
        TileShape shape(16);
        configure(shape);
#endif
        attend_tile<Products>(a, tiles[piece / a.kv_heads], piece % a.kv_heads);
#if defined(__AMX_BF16__)
        _tile_release();
#endif
    });
}

template <class S>
inline void prefill_attention(const PrefillAttention<float, S>& a) {
    attend_tiles<WideProducts>(a);
}

template <class S>
inline void prefill_attention(const PrefillAttention<bf16, S>& a) {
#if defined(__AMX_BF16__)
    if (a.D % STEP_K == 0) return attend_tiles<TileProducts>(a);
#endif
    attend_tiles<WideProducts>(a);
}

}  // namespace pagoda

// What Python calls (native/library.py). The file is compiled once for each instruction set (native/build.py). Sizes are in elements. One thread calls; work is shared inside.
#include "adapters.h"
#include "attention.h"
#include "drafting.h"
#include "elementwise.h"
#include "linear.h"
#include "linear_fp8.h"
#include "linear_quantized.h"
#include "meeting.h"
#include "prefill_attention.h"
#include "step.h"

#define EXPORT(name) extern "C" __attribute__((visibility("default"))) void pagoda_##name

namespace pagoda {
Team team;
}
using namespace pagoda;

// Numbers by which Python lays memory out for these kernels.
#define CONSTANT(name) extern "C" __attribute__((visibility("default"))) const int64_t pagoda_##name
CONSTANT(panel) = PANEL;
CONSTANT(most_parts) = MOST_PARTS;
CONSTANT(past_the_end) = PAST_THE_END;
CONSTANT(adapters_in_bytes) = PAGODA_ADAPTERS_IN_BYTES;
CONSTANT(ground_seats_bytes) = Ground::SEATS_BYTES;
CONSTANT(ground_rank_bytes) = Ground::BYTES_OF_A_RANK;

EXPORT(threads)(int64_t count) { team.use(unsigned(count)); }

// `side` and `slots`: what adapters add to the rows, see adapters.h; null in a step that has none.
EXPORT(linear)
(const void* x, const void* weight, const void* bias, const void* residual, void* y, int64_t M, int64_t N, int64_t K, int64_t ldx,
 int64_t ldy, int64_t epilogue, const void* side, const void* slots) {
    run_adapted<bf16>(Product{static_cast<const bf16*>(x), static_cast<const bf16*>(weight), static_cast<const bf16*>(bias),
                              static_cast<const bf16*>(residual), static_cast<bf16*>(y), M, N, K, ldx, ldy, int(epilogue)},
                      side, slots, [](const Product& p) { linear(p); });
}

EXPORT(linear_quantized)
(const void* x, const void* weight, const void* scales, const void* zeros, const void* bias, const void* residual, void* y, int64_t M,
 int64_t N, int64_t K, int64_t ldx, int64_t ldy, int64_t groups, int64_t epilogue, int64_t four_bits, int64_t wide, const void* side,
 const void* slots) {
    const QuantizedProduct product{x, static_cast<const uint8_t*>(weight), static_cast<const float*>(scales),
                                   static_cast<const uint8_t*>(zeros), bias, residual, y, M, N, K, ldx, ldy, groups, int(epilogue),
                                   four_bits != 0, wide != 0};
    const auto run = [](const QuantizedProduct& p) { linear_quantized(p); };
    wide ? run_adapted<float>(product, side, slots, run) : run_adapted<bf16>(product, side, slots, run);
}

EXPORT(linear_fp8)
(const void* x, const void* weight, const void* scales, const void* bias, const void* residual, void* y, int64_t M, int64_t N, int64_t K,
 int64_t ldx, int64_t ldy, int64_t groups, int64_t epilogue, const void* side, const void* slots) {
    Product product{static_cast<const bf16*>(x), nullptr, static_cast<const bf16*>(bias), static_cast<const bf16*>(residual),
                    static_cast<bf16*>(y), M, N, K, ldx, ldy, int(epilogue)};
    run_adapted<bf16>(Fp8Product{product, static_cast<const uint8_t*>(weight), static_cast<const float*>(scales), groups}, side, slots,
                      [](const Fp8Product& p) { linear_fp8(p); });
}

EXPORT(draft)
(const void* model, float eps, float scale, const void* unread_rows, const void* unread_at, int64_t unread, const void* ends,
 const void* rows, const void* at, const void* wanted, int64_t members, int64_t most, float least, void* ids, void* sure, void* made) {
    const auto numbers = [](const void* each) { return static_cast<const int64_t*>(each); };
    draft(*static_cast<const Llama*>(model), eps, scale, {numbers(unread_rows), numbers(unread_at), unread}, numbers(ends),
          {numbers(rows), numbers(at), members}, numbers(wanted), most, least, static_cast<int32_t*>(ids), static_cast<float*>(sure),
          static_cast<int64_t*>(made));
}

// places [2, count]: rows and positions; chunks [3, count]: rows, starts, counts; samplers [3, count]: tokens, rows, positions; adapters int32, or null; ids int64.
EXPORT(step)
(const void* model, float eps, float scale, const void* places, int64_t place_count, const void* chunks, int64_t chunk_count,
 const void* samplers, int64_t sampler_count, const void* adapters, void* logits, void* ids) {
    const auto numbers = [](const void* each, int64_t at) { return static_cast<const int64_t*>(each) + at; };
    step(*static_cast<const Llama*>(model), eps, scale, {numbers(places, 0), numbers(places, place_count), place_count},
         {numbers(chunks, 0), numbers(chunks, chunk_count), numbers(chunks, 2 * chunk_count), chunk_count},
         {numbers(samplers, 0), numbers(samplers, sampler_count), numbers(samplers, 2 * sampler_count), sampler_count},
         static_cast<const int32_t*>(adapters), static_cast<bf16*>(logits), static_cast<int64_t*>(ids));
}

// `ground`: what all ranks map, see meeting.h; `came` is 0 where one of them did not come within `patience_s`.
EXPORT(gather)
(void* ground, int64_t rank, int64_t size, int64_t patience_s, const void* from, void* to, int64_t bytes, void* came) {
    Ground here(ground, rank, size, patience_s);
    *static_cast<int64_t*>(came) = gather(here, from, to, bytes);
}

// The rest comes for float and for bf16; what reads or writes a KV cache also for each form of a quantized one.
#define FOR_TYPE(suffix, T)                                                                                              \
    EXPORT(all_reduce_##suffix)                                                                                          \
    (void* ground, int64_t rank, int64_t size, int64_t patience_s, void* x, int64_t count, void* came) {                 \
        Ground here(ground, rank, size, patience_s);                                                                     \
        *static_cast<int64_t*>(came) = all_reduce(here, static_cast<T*>(x), count);                                      \
    }                                                                                                                    \
    EXPORT(rms_norm_##suffix)                                                                                            \
    (const void* x, const void* weight, void* out, int64_t rows, int64_t size, int64_t ldx, float eps) {                 \
        rms_norm(static_cast<const T*>(x), static_cast<const T*>(weight), static_cast<T*>(out), rows, size, ldx, eps);   \
    }                                                                                                                    \
    EXPORT(add_deltas_##suffix)                                                                                          \
    (const void* side, const void* slots, const void* x, void* y, int64_t rows, int64_t ldx, int64_t ldy) {              \
        add_deltas(Deltas<T>{*static_cast<const AdapterSide*>(side), static_cast<const int32_t*>(slots),                 \
                             static_cast<const T*>(x), static_cast<T*>(y), rows, ldx, ldy});                             \
    }

#define FOR_CACHE(suffix, T, S)                                                                                                           \
    EXPORT(rotate_and_store_##suffix)                                                                                                     \
    (void* heads, const void* cos, const void* sin, const void* q_norm, const void* k_norm, void* cache, const void* slots,               \
     int64_t rows, int64_t q_heads, int64_t kv_heads, int64_t D, int64_t total_slots, int64_t page, float eps) {                          \
        rotate_and_store(static_cast<T*>(heads), static_cast<const T*>(cos), static_cast<const T*>(sin), static_cast<const T*>(q_norm),   \
                         static_cast<const T*>(k_norm), eps, static_cast<S*>(cache), static_cast<const int64_t*>(slots), rows, q_heads,   \
                         kv_heads, CacheLayout<S>{D, page, total_slots});                                                                 \
    }                                                                                                                                     \
    EXPORT(decode_attention_##suffix)                                                                                                     \
    (const void* query, const void* cache, const void* table, const void* lengths, void* out, int64_t rows, int64_t heads,                \
     int64_t kv_heads, int64_t D, int64_t total_slots, int64_t pages, int64_t page, int64_t ldq, int64_t window, float scale) {           \
        decode_attention<T, S>({static_cast<const T*>(query), static_cast<const S*>(cache), static_cast<const int32_t*>(table),           \
                                static_cast<const int32_t*>(lengths), static_cast<T*>(out), rows, heads, kv_heads, D, total_slots, pages, \
                                page, ldq, scale, window});                                                                               \
    }                                                                                                                                     \
    EXPORT(prefill_attention_##suffix)                                                                                                    \
    (const void* query, const void* cache, const void* table, const void* starts, const void* lengths, void* out, int64_t sequences,      \
     int64_t heads, int64_t kv_heads, int64_t D, int64_t total_slots, int64_t pages, int64_t page, int64_t ldq, int64_t window,           \
     float scale) {                                                                                                                       \
        prefill_attention(PrefillAttention<T, S>{static_cast<const T*>(query), static_cast<const S*>(cache),                              \
                                                 static_cast<const int32_t*>(table), static_cast<const int32_t*>(starts),                 \
                                                 static_cast<const int32_t*>(lengths), static_cast<T*>(out), sequences, heads, kv_heads,  \
                                                 D, total_slots, pages, page, ldq, scale, window});                                       \
    }

FOR_TYPE(f32, float)
FOR_TYPE(bf16, bf16)
FOR_CACHE(f32, float, float)
FOR_CACHE(f32_int8, float, int8)
FOR_CACHE(f32_fp8, float, e4m3)
FOR_CACHE(bf16, bf16, bf16)
FOR_CACHE(bf16_int8, bf16, int8)
FOR_CACHE(bf16_fp8, bf16, e4m3)

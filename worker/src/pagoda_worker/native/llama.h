// A Llama's tokens, one of each row, through all layers in one call: between two of its operations Python would take as long as a small one.
// The kernels are those that single calls have, in the same order, so the bits are the same too.
//
// Threads stay awake from one operation to the next (parallel.h), since nothing but arithmetic lies between.
#pragma once
#include "adapters.h"
#include "attention.h"
#include "elementwise.h"

namespace pagoda {

// The structs hold eight bytes a field: Python fills them in as integers, in this order (models/native_llama.py, layers/panels.py).
enum WeightForm : int64_t { WEIGHT_BF16 = 0, WEIGHT_INT8 = 1, WEIGHT_INT4 = 2, WEIGHT_FP8 = 3 };

struct PackedWeight {
    int64_t form;
    const void* values;
    const float* scales;
    const uint8_t* zeros;
    int64_t groups;
    const bf16* bias;  // of a gated product in the order of its panels
    const void* side;  // its AdapterSide; null: adapters do not touch it

    // y [M, N] = x [M, K] by the weight, and what the adapters in `slots` add; columns: from one row of y to the next.
    void multiply(const bf16* x, const bf16* before, bf16* y, int64_t M, int64_t N, int64_t K, int64_t columns, int epilogue,
                  const int32_t* slots) const {
        const Product plain{x, static_cast<const bf16*>(values), bias, before, y, M, N, K, K, columns, epilogue};
        switch (form) {
            case WEIGHT_BF16: return run_adapted<bf16>(plain, side, slots, [](const Product& p) { linear(p); });
            case WEIGHT_FP8:
                return run_adapted<bf16>(Fp8Product{plain, static_cast<const uint8_t*>(values), scales, groups}, side, slots,
                                         [](const Fp8Product& p) { linear_fp8(p); });
            default:
                const QuantizedProduct quantized{x, static_cast<const uint8_t*>(values), scales, zeros, bias, before, y, M, N, K, K, columns,
                                                 groups, epilogue, form == WEIGHT_INT4, false};
                run_adapted<bf16>(quantized, side, slots, [](const QuantizedProduct& p) { linear_quantized(p); });
        }
    }
};

struct LlamaLayer {
    const bf16 *attention_norm, *mlp_norm, *q_norm, *k_norm;
    PackedWeight qkv, out, gate_up, down;
    void* cache;
    int64_t window;
};

enum CacheForm : int64_t { CACHE_BF16 = 0, CACHE_INT8 = 1, CACHE_FP8 = 2 };

struct Llama {
    const LlamaLayer* layers;
    const bf16 *embedding, *norm, *cos, *sin;
    PackedWeight head;
    int64_t cache_form, depth, hidden, intermediate, heads, kv_heads, D, vocab, total_slots, page;
    int32_t* tokens;        // [rows, columns] of every row of the engine
    const int32_t* tables;  // [rows, pages]
    int64_t columns, pages;

    int64_t all_heads() const { return (heads + 2 * kv_heads) * D; }
};

// Tokens of rows: token i stands at position at[i] of row rows[i].
struct Places {
    const int64_t *rows, *at;
    int64_t count;
    const int32_t* adapters = nullptr;  // the slot of each token's, -1: it has none; null: nobody has one
};

// Parts of one piece of memory, each on a line of its own.
class Room {
  public:
    Room(int slot, int64_t bytes) : next_(static_cast<char*>(scratch(slot, bytes))) {}

    template <class T>
    T* take(int64_t count) {
        T* here = reinterpret_cast<T*>(next_);
        next_ += (count * sizeof(T) + 63) / 64 * 64;
        return here;
    }

  private:
    char* next_;
};

class Reading {
  public:
    // most: tokens of one call of `read`.
    Reading(const Llama& model, float eps, float scale, int64_t most) : m(model), eps(eps), scale(scale), room(4, bytes(model, most)) {
        residual = room.take<bf16>(most * m.hidden);
        x = room.take<bf16>(most * m.hidden);
        heads = room.take<bf16>(most * m.all_heads());
        attended = room.take<bf16>(most * m.heads * m.D);
        gated = room.take<bf16>(most * m.intermediate);
        cos = room.take<bf16>(most * m.D);
        sin = room.take<bf16>(most * m.D);
        slots = room.take<int64_t>(most);
        lengths = room.take<int32_t>(most);
        table = room.take<int32_t>(most * m.pages);
    }

    const Llama& m;
    bf16* x;  // [tokens, hidden] of what was read last: hidden states, normed

    // Reads tokens into the cache. A token may be read with those before it of its own row: all are in the cache before any is asked for.
    void read(const Places& places) {
        lay_out(places);
        switch (m.cache_form) {
            case CACHE_BF16: return through<bf16>(places);
            case CACHE_INT8: return through<int8>(places);
            default: through<e4m3>(places);
        }
    }

    // logits [rows, vocab] of hidden states.
    void judge(const bf16* hidden, int64_t rows, bf16* logits) const {
        m.head.multiply(hidden, nullptr, logits, rows, m.vocab, m.hidden, m.vocab, PLAIN, nullptr);
    }

  private:
    const float eps, scale;
    Room room;
    bf16 *residual, *heads, *attended, *gated, *cos, *sin;
    int64_t* slots;
    int32_t *lengths, *table;
    int64_t seen_pages = 0;  // of each row of `table`: those that the longest one has

    static int64_t bytes(const Llama& m, int64_t most) {
        const int64_t values = most * (2 * m.hidden + m.all_heads() + m.heads * m.D + m.intermediate + 2 * m.D);
        return values * sizeof(bf16) + most * (sizeof(int64_t) + (1 + m.pages) * sizeof(int32_t)) + 16 * 64;
    }

    void lay_out(const Places& places) {
        const int64_t D = m.D;
        seen_pages = 0;
        for (int64_t i = 0; i < places.count; i++) seen_pages = std::max(seen_pages, places.at[i] / m.page + 1);
        for (int64_t i = 0; i < places.count; i++) {
            const int64_t row = places.rows[i], at = places.at[i];
            const int32_t* pages = m.tables + row * m.pages;
            std::memcpy(residual + i * m.hidden, m.embedding + int64_t(m.tokens[row * m.columns + at]) * m.hidden, m.hidden * sizeof(bf16));
            std::memcpy(cos + i * D, m.cos + at * D, D * sizeof(bf16));
            std::memcpy(sin + i * D, m.sin + at * D, D * sizeof(bf16));
            std::memcpy(table + i * seen_pages, pages, seen_pages * sizeof(int32_t));
            slots[i] = int64_t(pages[at / m.page]) * m.page + at % m.page;
            lengths[i] = int32_t(at + 1);
        }
    }

    template <class S>
    void through(const Places& places) {
        rms_norm(residual, m.layers[0].attention_norm, x, places.count, m.hidden, m.hidden, eps);
        for (int64_t i = 0; i < m.depth; i++)
            through_layer<S>(m.layers[i], i + 1 < m.depth ? m.layers[i + 1].attention_norm : m.norm, places.count, places.adapters);
    }

    template <class S>
    void through_layer(const LlamaLayer& layer, const bf16* next_norm, int64_t count, const int32_t* adapters) {
        const int64_t all = m.all_heads(), attended_size = m.heads * m.D;
        S* cache = static_cast<S*>(layer.cache);
        layer.qkv.multiply(x, nullptr, heads, count, all, m.hidden, all, PLAIN, adapters);
        rotate_and_store(heads, cos, sin, layer.q_norm, layer.k_norm, eps, cache, slots, count, m.heads, m.kv_heads,
                         CacheLayout<S>{m.D, m.page, m.total_slots});
        decode_attention<bf16, S>({heads, cache, table, lengths, attended, count, m.heads, m.kv_heads, m.D, m.total_slots, seen_pages, m.page, all,
                                   scale, layer.window});
        layer.out.multiply(attended, residual, residual, count, m.hidden, attended_size, m.hidden, ADD, adapters);
        rms_norm(residual, layer.mlp_norm, x, count, m.hidden, m.hidden, eps);
        layer.gate_up.multiply(x, nullptr, gated, count, 2 * m.intermediate, m.hidden, m.intermediate, SILU_MUL, adapters);
        layer.down.multiply(gated, residual, residual, count, m.hidden, m.intermediate, m.hidden, ADD, adapters);
        rms_norm(residual, next_norm, x, count, m.hidden, m.hidden, eps);
    }
};

// The largest of a row, the first among equals. -1: it is not finite, or a NaN is anywhere; -inf elsewhere is no harm. As
// sampling/most_likely.py has it.
inline int64_t most_likely(const bf16* row, int64_t count) {
    constexpr int64_t STRIDE = 64 * W;
    float most = -INFINITY;
    int64_t nearby = 0;
    bool nan = false;
    for (int64_t from = 0; from < count; from += STRIDE) {
        const int64_t end = std::min(from + STRIDE, count), whole = from + (end - from) / W * W;
        V best = broadcast(-INFINITY), sums = broadcast(0.0f);
        for (int64_t i = from; i < whole; i += W) {
            V v = load(row + i);
            best = max(v, best);
            sums += max(broadcast(-1.0f), min(broadcast(1.0f), v));  // both give back the second where that is a NaN
        }
        float highest_here = highest(best), sum_here = sum(sums);
        for (int64_t i = whole; i < end; i++) {
            const float v = to_float(row[i]);
            highest_here = std::max(highest_here, v);
            if (v != v) sum_here = v;
        }
        nan |= sum_here != sum_here;
        if (highest_here > most) most = highest_here, nearby = from;
    }
    if (nan || most - most != 0.0f) return -1;
    while (to_float(row[nearby]) != most) nearby++;
    return nearby;
}

// A step of rows that decode: logits [count, vocab], and the likeliest next id of each, -1 where its logits mean nothing. That is written
// behind the place too, where the next step reads it; 0 in place of -1, which must not be read.
inline void decode_step(const Llama& model, float eps, float scale, const Places& places, bf16* logits, int64_t* ids) {
    Reading reading(model, eps, scale, places.count);
    reading.read(places);
    reading.judge(reading.x, places.count, logits);
    parallel_for(places.count, [&](int64_t i) {
        ids[i] = most_likely(logits + i * model.vocab, model.vocab);
        model.tokens[places.rows[i] * model.columns + places.at[i] + 1] = int32_t(std::max<int64_t>(ids[i], 0));
    });
}

}  // namespace pagoda

// A Llama's tokens, all of a step, through all layers in one call: between two of its operations Python would take as long as a small one.
// The kernels are those that single calls have, in the same order, so the bits are the same too.
//
// Threads stay awake from one operation to the next (parallel.h), since nothing but arithmetic lies between.
#pragma once
#include <numeric>

#include "adapters.h"
#include "attention.h"
#include "elementwise.h"
#include "prefill_attention.h"

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
};

// Of prompts: chunk i is counts[i] tokens of row rows[i], from position starts[i] on.
struct Chunks {
    const int64_t *rows, *starts, *counts;
    int64_t count;
};

// What is read at once: places, each as a row that decodes, several of one row or not, then the tokens of chunks.
struct Batch {
    Places places;
    Chunks chunks;
    const int64_t* kept;  // tokens whose hidden states are asked for, ascending, each once; null: those of all
    int64_t kept_count;
    const int32_t* adapters = nullptr;  // the slot of each token's, -1: it has none; null: nobody has one

    int64_t tokens() const { return std::accumulate(chunks.counts, chunks.counts + chunks.count, places.count); }
    int64_t sequences() const { return places.count + chunks.count; }
    int64_t results() const { return kept ? kept_count : tokens(); }
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
    // most: tokens, and sequences, of one call of `read`.
    Reading(const Llama& model, float eps, float scale, int64_t most, int64_t sequences)
        : m(model), eps(eps), scale(scale), room(4, bytes(model, most, sequences)) {
        residual = room.take<bf16>(most * m.hidden);
        x = room.take<bf16>(most * m.hidden);
        heads = room.take<bf16>(most * m.all_heads());
        attended = room.take<bf16>(most * m.heads * m.D);
        gated = room.take<bf16>(most * m.intermediate);
        cos = room.take<bf16>(most * m.D);
        sin = room.take<bf16>(most * m.D);
        slots = room.take<int64_t>(most);
        lengths = room.take<int32_t>(sequences);
        starts = room.take<int32_t>(sequences + 1);
        table = room.take<int32_t>(sequences * m.pages);
        adapters_of_kept = room.take<int32_t>(most);
    }

    const Llama& m;
    bf16* x;  // [results, hidden] of what was read last: hidden states, normed

    // Reads tokens into the cache. A token may be read with those before it of its own row: all are in the cache before any is asked for.
    void read(const Batch& batch) {
        lay_out(batch);
        switch (m.cache_form) {
            case CACHE_BF16: return through<bf16>(batch);
            case CACHE_INT8: return through<int8>(batch);
            default: through<e4m3>(batch);
        }
    }

    // logits [rows, vocab] of hidden states.
    void judge(const bf16* hidden, int64_t rows, bf16* logits) const {
        if (rows > 0) m.head.multiply(hidden, nullptr, logits, rows, m.vocab, m.hidden, m.vocab, PLAIN, nullptr);
    }

  private:
    const float eps, scale;
    Room room;
    bf16 *residual, *heads, *attended, *gated, *cos, *sin;
    int64_t* slots;
    int32_t *lengths, *starts, *table;  // of the context of each sequence, places first; of each chunk's tokens; of each sequence
    int32_t* adapters_of_kept;          // behind the last layer's cache
    int64_t seen_pages = 0;             // of each row of `table`: those that the longest one has

    static int64_t bytes(const Llama& m, int64_t most, int64_t sequences) {
        const int64_t values = most * (2 * m.hidden + m.all_heads() + m.heads * m.D + m.intermediate + 2 * m.D);
        return values * sizeof(bf16) + most * (sizeof(int64_t) + sizeof(int32_t)) + (sequences * (2 + m.pages) + 1) * sizeof(int32_t) + 16 * 64;
    }

    void lay_out(const Batch& batch) {
        const Places& places = batch.places;
        const Chunks& chunks = batch.chunks;
        int64_t last = 0, token = places.count;
        for (int64_t i = 0; i < places.count; i++) last = std::max(last, places.at[i]);
        for (int64_t i = 0; i < chunks.count; i++) last = std::max(last, chunks.starts[i] + chunks.counts[i] - 1);
        seen_pages = last / m.page + 1;
        for (int64_t i = 0; i < places.count; i++) {
            lay_token(i, places.rows[i], places.at[i]);
            lay_sequence(i, places.rows[i], places.at[i] + 1);
        }
        for (int64_t i = 0; i < chunks.count; i++) {
            starts[i] = int32_t(token);
            for (int64_t at = 0; at < chunks.counts[i]; at++) lay_token(token++, chunks.rows[i], chunks.starts[i] + at);
            lay_sequence(places.count + i, chunks.rows[i], chunks.starts[i] + chunks.counts[i]);
        }
        starts[chunks.count] = int32_t(token);
    }

    void lay_token(int64_t i, int64_t row, int64_t at) {
        const int64_t D = m.D;
        std::memcpy(residual + i * m.hidden, m.embedding + int64_t(m.tokens[row * m.columns + at]) * m.hidden, m.hidden * sizeof(bf16));
        std::memcpy(cos + i * D, m.cos + at * D, D * sizeof(bf16));
        std::memcpy(sin + i * D, m.sin + at * D, D * sizeof(bf16));
        slots[i] = int64_t(m.tables[row * m.pages + at / m.page]) * m.page + at % m.page;
    }

    void lay_sequence(int64_t i, int64_t row, int64_t length) {
        std::memcpy(table + i * seen_pages, m.tables + row * m.pages, seen_pages * sizeof(int32_t));
        lengths[i] = int32_t(length);
    }

    template <class S>
    void through(const Batch& batch) {
        int64_t count = batch.tokens();
        const int32_t* adapters = batch.adapters;
        rms_norm(residual, m.layers[0].attention_norm, x, count, m.hidden, m.hidden, eps);
        for (int64_t i = 0; i < m.depth; i++) {
            const bool last = i + 1 == m.depth;
            project_and_attend<S>(m.layers[i], batch, count);
            if (last && batch.kept) {
                count = keep(batch);
                if (adapters) adapters = adapters_of_kept;
            }
            feed_forward(m.layers[i], last ? m.norm : m.layers[i + 1].attention_norm, count, adapters);
        }
    }

    template <class S>
    void project_and_attend(const LlamaLayer& layer, const Batch& batch, int64_t count) {
        const int64_t all = m.all_heads(), singles = batch.places.count, chunks = batch.chunks.count;
        S* cache = static_cast<S*>(layer.cache);
        layer.qkv.multiply(x, nullptr, heads, count, all, m.hidden, all, PLAIN, batch.adapters);
        rotate_and_store(heads, cos, sin, layer.q_norm, layer.k_norm, eps, cache, slots, count, m.heads, m.kv_heads,
                         CacheLayout<S>{m.D, m.page, m.total_slots});
        if (singles > 0)
            decode_attention<bf16, S>({heads, cache, table, lengths, attended, singles, m.heads, m.kv_heads, m.D, m.total_slots, seen_pages,
                                       m.page, all, scale, layer.window});
        if (chunks > 0)
            prefill_attention(PrefillAttention<bf16, S>{heads, cache, table + singles * seen_pages, starts, lengths + singles, attended, chunks,
                                                        m.heads, m.kv_heads, m.D, m.total_slots, seen_pages, m.page, all, scale, layer.window});
    }

    // Behind the last layer's cache nobody asks for the other tokens.
    int64_t keep(const Batch& batch) {
        const int64_t attended_size = m.heads * m.D;
        for (int64_t i = 0; i < batch.kept_count; i++) {
            const int64_t from = batch.kept[i];
            if (batch.adapters) adapters_of_kept[i] = batch.adapters[from];
            if (from == i) continue;
            std::memcpy(attended + i * attended_size, attended + from * attended_size, attended_size * sizeof(bf16));
            std::memcpy(residual + i * m.hidden, residual + from * m.hidden, m.hidden * sizeof(bf16));
        }
        return batch.kept_count;
    }

    void feed_forward(const LlamaLayer& layer, const bf16* next_norm, int64_t count, const int32_t* adapters) {
        if (count == 0) return;
        layer.out.multiply(attended, residual, residual, count, m.hidden, m.heads * m.D, m.hidden, ADD, adapters);
        rms_norm(residual, layer.mlp_norm, x, count, m.hidden, m.hidden, eps);
        layer.gate_up.multiply(x, nullptr, gated, count, 2 * m.intermediate, m.hidden, m.intermediate, SILU_MUL, adapters);
        layer.down.multiply(gated, residual, residual, count, m.hidden, m.intermediate, m.hidden, ADD, adapters);
        rms_norm(residual, next_norm, x, count, m.hidden, m.hidden, eps);
    }
};

}  // namespace pagoda

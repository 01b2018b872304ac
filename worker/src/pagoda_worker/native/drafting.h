// A small Llama that guesses the next tokens of some rows, one after another, without a word from Python between them: at its sizes that word
// would cost more than the numbers. The kernels are those of a step, so the guesses are too.
#pragma once
#include "attention.h"
#include "elementwise.h"
#include "linear.h"

namespace pagoda {

// Both structs hold eight bytes a field: Python fills them in as integers, in this order (models/native_drafting.py).
struct DraftingLayer {
    const bf16 *attention_norm, *mlp_norm, *q_norm, *k_norm, *qkv, *qkv_bias, *out, *out_bias, *gate_up, *down, *down_bias;
    bf16* cache;
    int64_t window;
};

struct DraftingModel {
    const DraftingLayer* layers;
    const bf16 *embedding, *norm, *head, *cos, *sin;
    int32_t* tokens;        // [rows, columns]: of every row of the engine, what is known and what is guessed
    const int32_t* tables;  // [rows, pages]
    int64_t depth, hidden, intermediate, heads, kv_heads, D, vocab, total_slots, page, columns, pages;
};

// Tokens of rows: token i stands at position at[i] of row rows[i].
struct Places {
    const int64_t *rows, *at;
    int64_t count;
};

class Drafting {
  public:
    Drafting(const DraftingModel& model, float eps, float scale, int64_t most) : m(model), eps(eps), scale(scale) {
        const int64_t all_heads = (m.heads + 2 * m.kv_heads) * m.D, attended_size = m.heads * m.D;
        const int64_t values = most * (2 * m.hidden + all_heads + attended_size + m.intermediate + 2 * m.D + m.vocab);
        const int64_t bytes = values * sizeof(bf16) + most * (sizeof(int64_t) + (1 + m.pages) * sizeof(int32_t)) + 16 * 64;
        next = static_cast<char*>(scratch(4, bytes));
        residual = take<bf16>(most * m.hidden);
        x = take<bf16>(most * m.hidden);
        heads = take<bf16>(most * all_heads);
        attended = take<bf16>(attended_size * most);
        gated = take<bf16>(most * m.intermediate);
        cos = take<bf16>(most * m.D);
        sin = take<bf16>(most * m.D);
        logits = take<bf16>(most * m.vocab);
        slots = take<int64_t>(most);
        lengths = take<int32_t>(most);
        table = take<int32_t>(most * m.pages);
    }

    // Reads tokens into the cache; their hidden states stand in `x` afterwards.
    void read(const Places& places) {
        const int64_t count = places.count, D = m.D;
        for (int64_t i = 0; i < count; i++) {
            const int64_t row = places.rows[i], at = places.at[i];
            const int32_t* pages = m.tables + row * m.pages;
            std::memcpy(residual + i * m.hidden, m.embedding + int64_t(m.tokens[row * m.columns + at]) * m.hidden, m.hidden * sizeof(bf16));
            std::memcpy(cos + i * D, m.cos + at * D, D * sizeof(bf16));
            std::memcpy(sin + i * D, m.sin + at * D, D * sizeof(bf16));
            std::memcpy(table + i * m.pages, pages, m.pages * sizeof(int32_t));
            slots[i] = int64_t(pages[at / m.page]) * m.page + at % m.page;
            lengths[i] = int32_t(at + 1);
        }
        rms_norm(residual, m.layers[0].attention_norm, x, count, m.hidden, m.hidden, eps);
        for (int64_t i = 0; i < m.depth; i++) through(m.layers[i], i + 1 < m.depth ? m.layers[i + 1].attention_norm : m.norm, count);
    }

    // The likeliest next token behind hidden state `from`, and how sure the model is of it. Not finite: token 0, of which it is not sure at all.
    void guess(const int64_t* from, int64_t count, int32_t* ids, float* sure) {
        for (int64_t i = 0; i < count; i++) std::memcpy(residual + i * m.hidden, x + from[i] * m.hidden, m.hidden * sizeof(bf16));
        product(residual, m.head, nullptr, nullptr, logits, count, m.vocab, m.hidden, m.vocab, PLAIN);
        for (int64_t i = 0; i < count; i++) likeliest(logits + i * m.vocab, ids + i, sure + i);
    }

  private:
    const DraftingModel& m;
    const float eps, scale;
    char* next;
    bf16 *residual, *x, *heads, *attended, *gated, *cos, *sin, *logits;
    int64_t* slots;
    int32_t *lengths, *table;

    template <class T>
    T* take(int64_t count) {
        T* here = reinterpret_cast<T*>(next);
        next += (count * sizeof(T) + 63) / 64 * 64;
        return here;
    }

    void product(const bf16* from, const bf16* weight, const bf16* bias, const bf16* before, bf16* to, int64_t rows, int64_t out, int64_t in,
                 int64_t columns, int epilogue) {
        linear({from, weight, bias, before, to, rows, out, in, in, columns, epilogue});
    }

    void through(const DraftingLayer& layer, const bf16* next_norm, int64_t count) {
        const int64_t all_heads = (m.heads + 2 * m.kv_heads) * m.D, attended_size = m.heads * m.D;
        product(x, layer.qkv, layer.qkv_bias, nullptr, heads, count, all_heads, m.hidden, all_heads, PLAIN);
        rotate_and_store(heads, cos, sin, layer.q_norm, layer.k_norm, eps, layer.cache, slots, count, m.heads, m.kv_heads,
                         CacheLayout<bf16>{m.D, m.page, m.total_slots});
        decode_attention<bf16, bf16>({heads, layer.cache, table, lengths, attended, count, m.heads, m.kv_heads, m.D, m.total_slots, m.pages,
                                      m.page, all_heads, scale, layer.window});
        product(attended, layer.out, layer.out_bias, residual, residual, count, m.hidden, attended_size, m.hidden, ADD);
        rms_norm(residual, layer.mlp_norm, x, count, m.hidden, m.hidden, eps);
        product(x, layer.gate_up, nullptr, nullptr, gated, count, 2 * m.intermediate, m.hidden, m.intermediate, SILU_MUL);
        product(gated, layer.down, layer.down_bias, residual, residual, count, m.hidden, m.intermediate, m.hidden, ADD);
        rms_norm(residual, next_norm, x, count, m.hidden, m.hidden, eps);
    }

    void likeliest(const bf16* row, int32_t* id, float* sure) const {
        const int64_t whole = m.vocab / W * W;
        float most = -INFINITY, odd = 0.0f, total = 0.0f;
        V best = broadcast(-INFINITY), strange = broadcast(0.0f), sums = broadcast(0.0f);
        for (int64_t i = 0; i < whole; i += W) {
            V v = load(row + i);
            best = max(best, v);
            strange += v - v;  // 0, but for what is not finite
        }
        most = highest(best);
        for (int64_t i = whole; i < m.vocab; i++) most = std::max(most, to_float(row[i])), odd += to_float(row[i]) - to_float(row[i]);
        for (int64_t i = 0; i < whole; i += W) sums += exponential(load(row + i) - broadcast(most));
        for (int64_t i = whole; i < m.vocab; i++) total += std::exp(to_float(row[i]) - most);
        *id = 0, *sure = 0.0f;
        if (sum(strange) + odd != 0.0f || most - most != 0.0f) return;
        *sure = 1.0f / (total + sum(sums));
        while (to_float(row[*id]) != most) ++*id;
    }
};

// Reads `unread`, of which ends[i] is member i's last, then guesses for each member behind its newest token, at at[i] of rows[i]: at most wanted[i]
// tokens, and none that it thinks less likely than `least`, all before it included. ids and sure [members, most]; made [members]: how many.
// The rows' tokens are written as they are guessed.
inline void draft(const DraftingModel& model, float eps, float scale, const Places& unread, const int64_t* ends, const Places& members,
                  const int64_t* wanted, int64_t most, float least, int32_t* ids, float* sure, int64_t* made) {
    const int64_t count = members.count;
    Drafting drafting(model, eps, scale, std::max(unread.count, count));
    int64_t* lists = static_cast<int64_t*>(scratch(5, 4 * count * sizeof(int64_t) + count * (sizeof(int32_t) + sizeof(float))));
    int64_t *who = lists, *from = who + count, *rows = from + count, *at = rows + count, active = 0;
    int32_t* found = reinterpret_cast<int32_t*>(at + count);
    float* chances = reinterpret_cast<float*>(found + count);
    drafting.read(unread);
    for (int64_t i = 0; i < count; i++) {
        made[i] = 0;
        if (wanted[i] > 0) who[active] = i, from[active++] = ends[i];
    }
    for (int64_t step = 0; active > 0; step++) {
        drafting.guess(from, active, found, chances);
        int64_t left = 0;
        for (int64_t i = 0; i < active; i++) {
            const int64_t member = who[i], place = member * most + step, position = members.at[member] + step + 1;
            const float chance = chances[i] * (step ? sure[place - 1] : 1.0f);
            if (chance < least) continue;
            ids[place] = found[i], sure[place] = chance, made[member] = step + 1;
            model.tokens[members.rows[member] * model.columns + position] = found[i];
            if (step + 1 == wanted[member]) continue;
            from[left] = left, rows[left] = members.rows[member], at[left] = position, who[left++] = member;
        }
        active = left;
        if (active > 0) drafting.read({rows, at, active});
    }
}

}  // namespace pagoda

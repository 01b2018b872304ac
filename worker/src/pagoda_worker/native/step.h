// A whole step of a Llama in one call: what decodes, what verifies guesses, and chunks of prompts, to logits and the likeliest ids.
#pragma once
#include "llama.h"

namespace pagoda {

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

// Who samples: sampler i, behind token tokens[i] of the batch, ascending; several behind the same one where they part. Its id goes to position at[i]
// of row rows[i].
struct Samplers {
    const int64_t *tokens, *rows, *at;
    int64_t count;
};

// A step: logits [samplers, vocab], and the likeliest next id of each, -1 where its logits mean nothing. That is written where the next step reads
// it; 0 in place of -1, which must not be read. adapters: as Batch has them.
inline void step(const Llama& model, float eps, float scale, const Places& places, const Chunks& chunks, const Samplers& samplers,
                 const int32_t* adapters, bf16* logits, int64_t* ids) {
    Room room(5, 2 * samplers.count * sizeof(int64_t) + 2 * 64);
    int64_t *kept = room.take<int64_t>(samplers.count), *found = room.take<int64_t>(samplers.count), count = 0;
    for (int64_t i = 0; i < samplers.count; i++) {
        if (i == 0 || samplers.tokens[i] != samplers.tokens[i - 1]) kept[count++] = samplers.tokens[i];
        found[i] = count - 1;
    }
    const Batch batch{places, chunks, kept, count, adapters};
    Reading reading(model, eps, scale, batch.tokens(), batch.sequences());
    reading.read(batch);
    reading.judge(reading.x, count, logits);
    for (int64_t i = samplers.count - 1; i >= 0 && found[i] != i; i--)
        std::memcpy(logits + i * model.vocab, logits + found[i] * model.vocab, model.vocab * sizeof(bf16));
    parallel_for(samplers.count, [&](int64_t i) {
        ids[i] = most_likely(logits + i * model.vocab, model.vocab);
        model.tokens[samplers.rows[i] * model.columns + samplers.at[i]] = int32_t(std::max<int64_t>(ids[i], 0));
    });
}

}  // namespace pagoda

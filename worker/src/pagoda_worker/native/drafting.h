// A small Llama that guesses the next tokens of some rows, one after another, without a word from Python between them: at its sizes that word
// would cost more than the numbers. The kernels are those of a step, so the guesses are too.
#pragma once
#include "llama.h"

namespace pagoda {

// The likeliest token of a row of logits, and how sure the model is of it. Not finite: token 0, of which it is not sure at all.
inline void likeliest(const bf16* row, int64_t vocab, int32_t* id, float* sure) {
    const int64_t whole = vocab / W * W;
    float most = -INFINITY, odd = 0.0f, total = 0.0f;
    V best = broadcast(-INFINITY), strange = broadcast(0.0f), sums = broadcast(0.0f);
    for (int64_t i = 0; i < whole; i += W) {
        V v = load(row + i);
        best = max(best, v);
        strange += v - v;  // 0, but for what is not finite
    }
    most = highest(best);
    for (int64_t i = whole; i < vocab; i++) most = std::max(most, to_float(row[i])), odd += to_float(row[i]) - to_float(row[i]);
    for (int64_t i = 0; i < whole; i += W) sums += exponential(load(row + i) - broadcast(most));
    for (int64_t i = whole; i < vocab; i++) total += std::exp(to_float(row[i]) - most);
    *id = 0, *sure = 0.0f;
    if (sum(strange) + odd != 0.0f || most - most != 0.0f) return;
    *sure = 1.0f / (total + sum(sums));
    while (to_float(row[*id]) != most) ++*id;
}

// Reads `unread`, of which ends[i], ascending, is member i's last, then guesses for each member behind its newest token, at at[i] of rows[i]: at most wanted[i]
// tokens, and none that it thinks less likely than `least`, all before it included. ids and sure [members, most]; made [members]: how many.
// The rows' tokens are written as they are guessed.
inline void draft(const Llama& model, float eps, float scale, const Places& unread, const int64_t* ends, const Places& members,
                  const int64_t* wanted, int64_t most, float least, int32_t* ids, float* sure, int64_t* made) {
    const int64_t count = members.count;
    Reading reading(model, eps, scale, std::max(unread.count, count), std::max(unread.count, count));
    const int64_t numbers = 4 * sizeof(int64_t) + sizeof(int32_t) + sizeof(float);
    Room room(5, count * (numbers + (model.hidden + model.vocab) * sizeof(bf16)) + 8 * 64);
    int64_t *who = room.take<int64_t>(count), *from = room.take<int64_t>(count), *rows = room.take<int64_t>(count), *at = room.take<int64_t>(count);
    int32_t* found = room.take<int32_t>(count);
    float* chances = room.take<float>(count);
    bf16 *hidden = room.take<bf16>(count * model.hidden), *logits = room.take<bf16>(count * model.vocab);
    int64_t active = 0;
    reading.read({unread, {}, ends, count});
    for (int64_t i = 0; i < count; i++) {
        made[i] = 0;
        if (wanted[i] > 0) who[active] = i, from[active++] = i;
    }
    for (int64_t step = 0; active > 0; step++) {
        for (int64_t i = 0; i < active; i++)
            std::memcpy(hidden + i * model.hidden, reading.x + from[i] * model.hidden, model.hidden * sizeof(bf16));
        reading.judge(hidden, active, logits);
        for (int64_t i = 0; i < active; i++) likeliest(logits + i * model.vocab, model.vocab, found + i, chances + i);
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
        if (active > 0) reading.read({{rows, at, active}, {}, nullptr, 0});
    }
}

}  // namespace pagoda

// The deltas beside weights of eight or four bits: bytes like those, by activations in bytes like theirs. Included by adapters.h, with vectors of 16.
//
// An adapter in bf16 would be read at twice the bytes of its model's and multiplied at a quarter of the speed, so it is rounded like it
// (layers/native_adapters.py): A to a scale for each rank, which is then B's, so that a row's few numbers are alike in size; B to a scale for each column. Of a row,
// x is rounded as for the product, and its numbers for each part. Bytes in memory are those plus 128, as linear_quantized.h has them. Ranks of
// each part are filled up with zeros to quads, those of all touched parts together to whole vectors.
//
//     A        [16 ranks, and so on][in / 4 quads][16 ranks][4]
//     B        of each touched part [columns / 16][rank / 4 quads][16 columns][4]
//     scales   of each touched part [columns] float: of B
//
// Sums are of integers, so they are exact, and a row's result is the same in any company and order.
#pragma once
#include "rounded_rows.h"

namespace pagoda {

struct ByteShape {
    int64_t parts, rank, vectors;

    explicit ByteShape(const InSlot& slot)
        : parts(touched_parts(slot)), rank((slot.rank + 3) / 4 * 4), vectors((parts * rank + W - 1) / W) {}
};

// A row's numbers of one part, in words of four bytes: a scale, 128 times their sum, and quads of them.
struct FewNumbers {
    static constexpr int64_t QUADS_AT = 2;
    static int64_t words(int64_t rank) { return QUADS_AT + rank / 4; }

    float scale;
    int32_t offset;
    const int8_t* quads;

    explicit FewNumbers(const float* words) : scale(words[0]), quads(reinterpret_cast<const int8_t*>(words + QUADS_AT)) {
        std::memcpy(&offset, words + 1, sizeof(offset));
    }

    // Of `rank` sums of integers, whose scale is `of_sums`.
    static void write(const int32_t* sums, int64_t rank, float of_sums, float* words) {
        int32_t largest = 1, total = 0;
        for (int64_t r = 0; r < rank; r++) largest = std::max(largest, std::abs(sums[r]));
        const float inverse = 127.0f / float(largest);
        int8_t* quads = reinterpret_cast<int8_t*>(words + QUADS_AT);
        for (int64_t r = 0; r < rank; r++) {
            quads[r] = int8_t(std::nearbyintf(float(sums[r]) * inverse));
            total += quads[r];
        }
        total *= 128;
        words[0] = of_sums * float(largest) / 127.0f;
        std::memcpy(words + 1, &total, sizeof(total));
    }
};

// As InRows, by the order of this file. T: of x.
template <class T>
struct InBytes {
    static int64_t ranks(const InSlot& slot) { return ByteShape(slot).parts * FewNumbers::words(ByteShape(slot).rank); }

    template <int N>
    static void shrink_rows(const Deltas<T>& d, const Group<FEW_ROWS>& group, float* numbers, int64_t apart) {
        const ByteShape shape(group.slot);
        const int64_t size = d.side.size, steps = (size + STEP_8 - 1) / STEP_8, quads = size / 4;
        const auto a = static_cast<const uint8_t*>(group.slot.weights);
        int8_t* x = reinterpret_cast<int8_t*>(own_scratch(size_t(N * (steps * STEP_8 + shape.vectors * W * int64_t(sizeof(int32_t))))));
        int32_t* sums = reinterpret_cast<int32_t*>(x + N * steps * STEP_8);  // [N, ranks of all touched parts]
        float scales[N], totals[N];
        for (int i = 0; i < N; i++) {
            totals[i] = 0.0f;
            quantize_row(d.x + group.row[i] * d.ldx, size, 1, size, x + i * steps * STEP_8, STEP_8, scales + i, totals + i);
        }
        int64_t vector = 0;
        const auto take = [&](auto count) {
            constexpr int C = decltype(count)::value;
            Raw dots[N][C];
            add_quads(dots, x, steps * STEP_8, a + vector * quads * 64, quads * 64, quads);
            for (int i = 0; i < N; i++)
                for (int c = 0; c < C; c++)
                    keep_whole(sums + (i * shape.vectors + vector + c) * W, less(dots[i][c], whole_everywhere(int32_t(totals[i]) * 128)));
            vector += C;
        };
        while (vector + 4 <= shape.vectors) take(std::integral_constant<int, 4>());
        while (vector + 2 <= shape.vectors) take(std::integral_constant<int, 2>());
        if (vector < shape.vectors) take(std::integral_constant<int, 1>());
        for (int i = 0; i < N; i++)
            for (int64_t p = 0; p < shape.parts; p++)
                FewNumbers::write(sums + i * shape.vectors * W + p * shape.rank, shape.rank, scales[i],
                                  numbers + i * apart + p * FewNumbers::words(shape.rank));
    }

    template <int N>
    static void expand(const AddedSums& added, const InSlot& slot, const float* numbers, const HalfPanels& columns, const int64_t* at) {
        const ByteShape shape(slot);
        const PartPlace place = place_of(added.side, slot, shape.rank, columns.part);
        const auto first = static_cast<const uint8_t*>(slot.weights) + shape.vectors * W * added.side.size;
        const uint8_t* b = first + place.at + columns.within * shape.rank;
        const float* scales = scales_of(added.side, slot, shape, first, place.at) + columns.within;
        const int64_t quads = shape.rank / 4, words = FewNumbers::words(shape.rank);
        int64_t half = 0;
        const auto take = [&](auto count) {
            constexpr int C = decltype(count)::value;
            Raw dots[N][C];
            const float* few = numbers + place.place * words;
            const uint8_t* from = b + half * HALF * shape.rank;
            for (int c = 0; c < C; c++)
                for (int64_t q = 0; q < quads; q++)
                    _mm_prefetch(reinterpret_cast<const char*>(from + columns.ahead * HALF * shape.rank + (c * quads + q) * 64), _MM_HINT_T1);
            add_quads(dots, reinterpret_cast<const int8_t*>(few + FewNumbers::QUADS_AT), added.apart * 4, from, quads * 64, quads);
            for (int i = 0; i < N; i++) {
                const FewNumbers row(few + i * added.apart);
                for (int c = 0; c < C; c++) {
                    const V scale = load(scales + (half + c) * HALF) * broadcast(row.scale);
                    store(columns.to + (half + c) * columns.apart + at[i], to_floats(less(dots[i][c], whole_everywhere(row.offset))) * scale);
                }
            }
            half += C;
        };
        while (half + 4 <= columns.count) take(std::integral_constant<int, 4>());
        while (half + 2 <= columns.count) take(std::integral_constant<int, 2>());
        if (half < columns.count) take(std::integral_constant<int, 1>());
    }

  private:
    // Behind the B of all touched parts; those of a part `at` whose B begins there.
    static const float* scales_of(const AdapterSide& side, const InSlot& slot, const ByteShape& shape, const uint8_t* b, int64_t at) {
        int64_t columns = 0;
        for_touched(side, slot, 1, [&](int64_t part, int64_t, int64_t) { columns += side.ends[part] - side.begin(part); });
        return reinterpret_cast<const float*>(b + columns * shape.rank) + at / shape.rank;
    }

    // dots = so many quads of C vectors, `across` bytes apart, by N rows of x, `ldx` bytes apart.
    template <int N, int C>
    static void add_quads(Raw (&dots)[N][C], const int8_t* x, int64_t ldx, const uint8_t* w, int64_t across, int64_t quads) {
        constexpr int APART = N * C >= 8 ? 1 : N * C >= 4 ? 2 : 4;  // sums that do not wait for each other
        Raw sums[APART][N][C];
        for (auto& each : sums)
            for (auto& row : each)
                for (Raw& sum : row) sum = no_bytes();
        int64_t q = 0;
        const auto step = [&](int into) {
            for (int c = 0; c < C; c++) {
                const Raw four = load_bytes(w + c * across + q * 64);
                for (int i = 0; i < N; i++) sums[into][i][c] = dot4(sums[into][i][c], four, four_everywhere(x + i * ldx + q * 4));
            }
            q++;
        };
        while (q + APART <= quads)
#pragma GCC unroll 4
            for (int into = 0; into < APART; into++) step(into);
        while (q < quads) step(0);
        for (int i = 0; i < N; i++)
            for (int c = 0; c < C; c++) {
                dots[i][c] = sums[0][i][c];
                for (int into = 1; into < APART; into++) dots[i][c] = _mm512_add_epi32(dots[i][c], sums[into][i][c]);
            }
    }
};

}  // namespace pagoda

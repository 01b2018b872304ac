// Where adapters lie beside a product, as Python writes it (layers/native_adapters.py). Known to products and to adapters.h.
//
// What lies in a slot is one block of memory, A and then B, of the parts that the adapter touches, in the order of parts:
//
//     A    [touched parts, rank, in]
//     B    of each touched part [rank, its columns]: transposed, times the scale
//
// (as floats; adapters_pairs.h has the order of bf16 with vectors of 16).
#pragma once
#include <cstdint>

namespace pagoda {

constexpr int64_t MOST_PARTS = 3;
constexpr int64_t PAST_THE_END = 512;  // values that a tile of fewer ranks reads beyond a slot's block: they meet zeros
constexpr int64_t HALF = 16;  // columns of each half that lie together in an interleaved y, see linear.h

struct InSlot {
    const void* weights;
    int64_t rank;     // 0: there is no adapter, or it does not touch this linear
    int64_t touched;  // bit p: part p
};

// Of one linear; written by Python, slots follow at once.
struct AdapterSide {
    int64_t parts, slot_count, size, interleaved;
    int64_t ends[MOST_PARTS];  // where each part's columns end

    const InSlot& slot(int64_t i) const { return reinterpret_cast<const InSlot*>(this + 1)[i]; }
    int64_t begin(int64_t part) const { return part ? ends[part - 1] : 0; }
    int64_t out() const { return ends[parts - 1]; }
};

inline int64_t touched_parts(const InSlot& slot) { return __builtin_popcountll(slot.touched); }

// body(part, its place among those that are touched, where its B begins when a rank takes `ranks` of room).
template <class Body>
inline void for_touched(const AdapterSide& side, const InSlot& slot, int64_t ranks, const Body& body) {
    int64_t place = 0, at = 0;
    for (int64_t part = 0; part < side.parts; part++) {
        if (!(slot.touched >> part & 1)) continue;
        body(part, place++, at);
        at += ranks * (side.ends[part] - side.begin(part));
    }
}

// Of a part that is touched: its place among those, and where its B begins when a rank takes `ranks` of room.
struct PartPlace {
    int64_t place, at;
};

inline PartPlace place_of(const AdapterSide& side, const InSlot& slot, int64_t ranks, int64_t part) {
    PartPlace found{0, 0};
    for_touched(side, slot, ranks, [&](int64_t each, int64_t place, int64_t at) {
        if (each == part) found = {place, at};
    });
    return found;
}

}  // namespace pagoda

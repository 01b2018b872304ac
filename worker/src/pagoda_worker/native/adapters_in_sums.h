// What adapters add to a product by vectors, in its sums before they are rounded, added to and gated: beside each panel the deltas of its
// columns, made by the thread that is about to multiply it, in memory of its own that stays in its caches. So y is written once, and a row's
// result does not depend on its neighbours' adapters. Included by linear.h; adapters.h makes these. Tiles have adapters_in_tiles.h.
#pragma once
#include <vector>

#include "adapter_side.h"

namespace pagoda {

constexpr int64_t FEW_ROWS = 4;

// At most N rows of one slot, ascending.
template <int N>
struct Group {
    InSlot slot;
    int64_t count, row[N];
};

// Columns of half panels that lie together in one part.
struct PartColumns {
    int64_t part, within, halves;
};

// The thread's own: where row 0 of what it opened would lie.
inline const float*& opened_deltas() {
    static thread_local const float* deltas = nullptr;
    return deltas;
}

// Of all rows of one call.
struct AddedSums {
    const AdapterSide& side;
    std::vector<Group<FEW_ROWS>> groups;  // of those rows that have an adapter here
    std::vector<uint8_t> adapted;         // [rows]: has one
    const float* numbers;                 // [groups, FEW_ROWS, apart]: x by A, of all touched parts
    int64_t apart;
    // to [count] rows = B's columns by their numbers.
    void (*expand)(const AddedSums& added, const InSlot& slot, const float* numbers, int64_t count, const PartColumns& columns, float* const* to);

    // The deltas of rows m0 … m1 for a panel's columns, for this thread's `finish` of these rows.
    void open(int64_t panel, int64_t m0, int64_t m1) const {
        PartColumns columns[2];
        const int64_t runs = columns_of(panel, columns);
        float* deltas = reinterpret_cast<float*>(own_scratch(size_t((m1 - m0) * PANEL) * sizeof(float), OWN_DELTAS)) - m0 * PANEL;
        opened_deltas() = deltas;
        for (size_t i = 0; i < groups.size(); i++) {
            const Group<FEW_ROWS>& group = groups[i];
            const float* of_group = numbers + int64_t(i) * FEW_ROWS * apart;
            int64_t first = 0, end = group.count;
            while (first < end && group.row[first] < m0) first++;
            while (first < end && group.row[end - 1] >= m1) end--;
            if (first == end) continue;
            float* to[FEW_ROWS];
            for (int64_t r = first; r < end; r++) to[r - first] = deltas + group.row[r] * PANEL;
            for (int64_t run = 0; run < runs; run++) {
                if (group.slot.touched >> columns[run].part & 1) {
                    expand(*this, group.slot, of_group + first * apart, end - first, columns[run], to);
                } else {
                    for (int64_t r = 0; r < end - first; r++) std::fill_n(to[r], columns[run].halves * HALF, 0.0f);
                }
                for (int64_t r = 0; r < end - first; r++) to[r] += columns[run].halves * HALF;
            }
        }
    }

    // How many. A half of none of the parts is left out: nobody looks at it.
    int64_t columns_of(int64_t panel, PartColumns* columns) const {
        if (side.interleaved) {
            columns[0] = {0, panel * HALF, 1}, columns[1] = {1, panel * HALF, 1};
            return 2;
        }
        int64_t runs = 0;
        for (int64_t column = panel * PANEL; column < std::min((panel + 1) * PANEL, side.out()); column += HALF) {
            int64_t part = 0;
            while (column >= side.ends[part]) part++;
            if (runs && columns[runs - 1].part == part) {
                columns[runs - 1].halves++;
            } else {
                columns[runs++] = {part, column - side.begin(part), 1};
            }
        }
        return runs;
    }
};

// Before a thread multiplies rows m0 … m1 by a panel, which it will finish without another panel between.
inline void open_added(const AddedSums* added, int64_t panel, int64_t m0, int64_t m1) {
    if (added) added->open(panel, m0, m1);
}

// What `finish` adds to rows.
class OpenedRows {
  public:
    explicit OpenedRows(const AddedSums* added) : added_(added), deltas_(added ? opened_deltas() : nullptr) {}

    // [PANEL]; null: nothing.
    const float* row(int64_t m) const { return added_ && added_->adapted[m] ? deltas_ + m * PANEL : nullptr; }

  private:
    const AddedSums* added_;
    const float* deltas_;
};

}  // namespace pagoda

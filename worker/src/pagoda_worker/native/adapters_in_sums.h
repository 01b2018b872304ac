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

// Half panels whose columns lie together in one part, and where their deltas go: those of a half `apart` values behind those of the last.
struct HalfPanels {
    int64_t part, within, count;
    float* to;
    int64_t apart, ahead;  // ahead: half panels until those that this thread takes next
};

// What a thread has opened, [half panels, rows m0 … m1, HALF].
struct OpenedDeltas {
    const float* deltas;
    int64_t panel, m0, rows;
};
inline OpenedDeltas& opened_deltas() {
    static thread_local OpenedDeltas opened{};
    return opened;
}

// Of all rows of one call.
struct AddedSums {
    static constexpr int64_t ROWS_AT_ONCE = 64;  // of which several panels' deltas stay in the caches

    const AdapterSide& side;
    std::vector<Group<FEW_ROWS>> groups;  // of those rows that have an adapter here
    std::vector<uint8_t> adapted;         // [rows]: has one
    const float* numbers;                 // [groups, FEW_ROWS, apart]: x by A, of all touched parts
    int64_t apart;
    // B's columns by the numbers of `count` rows; at[i]: where row i's deltas are, behind columns.to.
    void (*expand)(const AddedSums& added, const InSlot& slot, const float* numbers, int64_t count, const HalfPanels& columns, const int64_t* at);

    // Deltas of rows m0 … m1 for panels `begin` to `end`, for `finish` by this thread, which will open panels `ahead` of these next.
    void open(int64_t begin, int64_t end, int64_t m0, int64_t m1, int64_t ahead) const {
        const int64_t rows = m1 - m0;
        float* deltas = reinterpret_cast<float*>(own_scratch(size_t((end - begin) * rows * PANEL) * sizeof(float), OWN_DELTAS));
        opened_deltas() = {deltas, begin, m0, rows};
        HalfPanels runs[MOST_PARTS];
        const int64_t count = runs_of(begin, end, rows, deltas, ahead, runs);
        for (size_t i = 0; i < groups.size(); i++) {
            const Group<FEW_ROWS>& group = groups[i];
            int64_t first = 0, past = group.count;
            while (first < past && group.row[first] < m0) first++;
            while (first < past && group.row[past - 1] >= m1) past--;
            if (first == past) continue;
            int64_t at[FEW_ROWS];
            for (int64_t r = first; r < past; r++) at[r - first] = (group.row[r] - m0) * HALF;
            for (int64_t run = 0; run < count; run++) {
                if (group.slot.touched >> runs[run].part & 1) {
                    expand(*this, group.slot, numbers + (int64_t(i) * FEW_ROWS + first) * apart, past - first, runs[run], at);
                } else {
                    for (int64_t half = 0; half < runs[run].count; half++)
                        for (int64_t r = 0; r < past - first; r++) std::fill_n(runs[run].to + half * runs[run].apart + at[r], HALF, 0.0f);
                }
            }
        }
    }

  private:
    // How many. Halves of none of the parts are left out: nobody looks at them.
    int64_t runs_of(int64_t begin, int64_t end, int64_t rows, float* deltas, int64_t ahead, HalfPanels* runs) const {
        if (side.interleaved) {
            for (int64_t part = 0; part < 2; part++)
                runs[part] = {part, begin * HALF, end - begin, deltas + part * rows * HALF, 2 * rows * HALF, ahead};
            return 2;
        }
        int64_t count = 0;
        for (int64_t part = 0; part < side.parts; part++) {
            const int64_t from = std::max(begin * PANEL, side.begin(part)), to = std::min(end * PANEL, side.ends[part]);
            if (from >= to) continue;
            float* first = deltas + (from - begin * PANEL) / HALF * rows * HALF;
            runs[count++] = {part, from - side.begin(part), (to - from) / HALF, first, rows * HALF, 2 * ahead};
        }
        return count;
    }
};

// Before a thread multiplies rows m0 … m1 by panels `begin` to `end`, one after the other.
inline void open_added(const AddedSums* added, int64_t begin, int64_t end, int64_t m0, int64_t m1) {
    if (added) added->open(begin, end, m0, m1, (end - begin) * team.threads);
}

// The same in a run of pieces, of which this one is `panel` for those rows; `first` of the run or not. Panels up to `end` follow.
inline void open_added_in_run(const AddedSums* added, bool first, int64_t panel, int64_t end, int64_t m0, int64_t m1) {
    if (!added) return;
    if (m1 - m0 > AddedSums::ROWS_AT_ONCE) return added->open(panel, panel + 1, m0, m1, 1);
    if (first || panel == 0) added->open(panel, end, m0, m1, (end - panel) * team.threads);
}

// What `finish` adds to rows of a panel.
class OpenedRows {
  public:
    OpenedRows(const AddedSums* added, int64_t panel) : added_(added) {
        if (!added) return;
        const OpenedDeltas& opened = opened_deltas();
        half_ = opened.rows * HALF;
        deltas_ = opened.deltas + (panel - opened.panel) * 2 * half_ - opened.m0 * HALF;
    }

    bool any(int64_t m) const { return added_ && added_->adapted[m]; }
    V at(int64_t m, int64_t column) const { return load(deltas_ + column / HALF * half_ + m * HALF + column % HALF); }

  private:
    const AddedSums* added_;
    const float* deltas_ = nullptr;
    int64_t half_ = 0;
};

}  // namespace pagoda

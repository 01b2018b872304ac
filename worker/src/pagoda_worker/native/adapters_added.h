// The numbers of all rows of a call as a product's tiles take them (adapters_in_tiles.h). Included by adapters_pairs.h.
#pragma once

namespace pagoda {

// Where a product takes what adapters add into its sums: the numbers of all rows, as adapters_in_tiles.h wants them.
inline Added added_in_tiles(const Deltas<bf16>& d) {
    Added added{d.side, {}, {}};
    std::vector<int64_t> block_of(size_t(d.rows));
    std::vector<int64_t> open(size_t(d.side.slot_count), -1);  // the last block of each slot
    int64_t values = 0;
    for (int64_t row = 0; row < d.rows; row++) {
        if (row % STRIP == 0) added.begins.push_back(int64_t(added.blocks.size()));
        const int64_t slot = d.slots[row];
        if (slot < 0 || d.side.slot(slot).rank == 0) continue;
        if (open[slot] < added.begins.back()) {
            const InSlot& in = d.side.slot(slot);
            AddedBlock block{b_of(in, d.side.size), nullptr, AdapterShape(in).rank, {-1, -1, -1}, {}, false, false};
            for_touched(d.side, in, block.rank, [&](int64_t part, int64_t place, int64_t at) { block.at[part] = at, block.place[part] = place; });
            open[slot] = int64_t(added.blocks.size());
            added.blocks.push_back(block);
            values += touched_parts(in) * block.steps() * NUMBERS;
        }
        block_of[row] = open[slot];
        (row % STRIP < STRIP / 2 ? added.blocks[open[slot]].upper : added.blocks[open[slot]].lower) = true;
    }
    added.begins.push_back(int64_t(added.blocks.size()));
    if (added.blocks.empty()) return added;
    bf16* numbers = static_cast<bf16*>(scratch(3, size_t(values) * sizeof(bf16)));
    std::memset(numbers, 0, size_t(values) * sizeof(bf16));
    for (AddedBlock& block : added.blocks) {
        block.numbers = numbers;
        for (int64_t part = 0; part < d.side.parts; part++) numbers += block.at[part] < 0 ? 0 : block.steps() * NUMBERS;
    }
    const auto groups = groups_of<GROUP_ROWS>(d);
    parallel_for(int64_t(groups.size()), [&](int64_t piece) {
        const Group<GROUP_ROWS>& group = groups[piece];
        const AdapterShape shape(group.slot);
        alignas(64) bf16 dense[GROUP_ROWS * MOST_PARTS * MOST_RANKS];
        shrink_group(d, group, dense);
        for (int64_t i = 0; i < group.count; i++) {
            const AddedBlock& block = added.blocks[block_of[group.row[i]]];
            bf16* to = block.numbers + group.row[i] % STRIP * STEP_K;
            for (int64_t place = 0; place < touched_parts(group.slot); place++)
                for (int64_t r = 0; r < shape.rank; r += STEP_K, to += NUMBERS)
                    std::memcpy(to, dense + i * shape.ranks() + place * shape.rank + r, size_t(std::min(STEP_K, shape.rank - r)) * sizeof(bf16));
        }
    });
    return added;
}

}  // namespace pagoda

// Where the ranks of one machine's CPUs meet: memory that all of them map. Sums are added in the order of ranks, so all of them have the same
// bits. A meeting costs microseconds where one over a socket costs a wake-up of a thread on each side.
//
// A rank lays a piece down, says so, waits until everybody has, and reads. Pieces have two places by turns: whoever lays down the piece after
// the next has seen everybody lay down the next, and they did that after they had read this one.
#pragma once
#include <time.h>

#include <algorithm>
#include <cerrno>

#include "parallel.h"
#include "vec.h"

namespace pagoda {

class Ground {
    struct alignas(64) Seat {
        std::atomic<uint32_t> come;  // pieces laid down; may wrap around
        std::atomic<uint32_t> sleepers;
    };

  public:
    static constexpr int64_t PIECE = 256 << 10;  // bytes: stays in the caches of whoever reads it next
    static constexpr int64_t MOST_RANKS = 64;
    static constexpr int64_t SEATS_BYTES = MOST_RANKS * int64_t(sizeof(Seat)), BYTES_OF_A_RANK = 2 * PIECE;  // of the memory, in this order

    Ground(void* memory, int64_t rank, int64_t size, int64_t patience_s)
        : seats_(static_cast<Seat*>(memory)), pieces_(static_cast<char*>(memory) + SEATS_BYTES), rank_(rank), size_(size),
          patience_s_(patience_s) {}

    int64_t rank() const { return rank_; }
    int64_t size() const { return size_; }

    // Calls use(first, length, turn) for each piece of `bytes` that everybody has laid down. False: somebody did not come.
    template <class Use>
    bool share(const void* from, int64_t bytes, const Use& use) {
        for (int64_t first = 0; first < bytes; first += PIECE) {
            const int64_t length = std::min(PIECE, bytes - first);
            const uint32_t turn = seats_[rank_].come.load(std::memory_order_relaxed);
            std::memcpy(piece(rank_, turn), static_cast<const char*>(from) + first, size_t(length));
            arrive(turn + 1);
            for (int64_t other = 0; other < size_; other++)
                if (other != rank_ && !wait(seats_[other], turn + 1)) return false;
            use(first, length, turn);
        }
        return true;
    }

    char* piece(int64_t rank, uint32_t turn) const { return pieces_ + (2 * rank + (turn & 1)) * PIECE; }

  private:
    static constexpr int SPINS = 2000;  // of `pause`, some 50 us: ranks that compute alike come within that

    void arrive(uint32_t turn) {
        Seat& seat = seats_[rank_];
        seat.come.store(turn);  // before sleepers is read: one of the two sees the other
        if (seat.sleepers.load() > 0) syscall(SYS_futex, &seat.come, FUTEX_WAKE, 0x7FFFFFFF, nullptr, nullptr, 0);
    }

    bool wait(Seat& seat, uint32_t turn) {
        const auto here = [&] { return int32_t(seat.come.load(std::memory_order_acquire) - turn) >= 0; };
        for (int spins = 0; spins < SPINS; spins++) {
            if (here()) return true;
            _mm_pause();
        }
        timespec slice{1, 0};
        for (int64_t waited = 0; waited < patience_s_;) {
            seat.sleepers.fetch_add(1);
            const uint32_t seen = seat.come.load();
            const bool late = int32_t(seen - turn) < 0 && syscall(SYS_futex, &seat.come, FUTEX_WAIT, seen, &slice, nullptr, 0) != 0 &&
                              errno == ETIMEDOUT;
            seat.sleepers.fetch_sub(1);
            if (here()) return true;
            waited += late;
        }
        return false;
    }

    Seat* seats_;
    char* pieces_;
    int64_t rank_, size_, patience_s_;
};

// x becomes the sum of everybody's x.
template <class T>
bool all_reduce(Ground& ground, T* x, int64_t count) {
    constexpr int64_t SLICE = 16 << 10;
    return ground.share(x, count * int64_t(sizeof(T)), [&](int64_t first, int64_t length, uint32_t turn) {
        T* to = x + first / int64_t(sizeof(T));
        const int64_t numbers = length / int64_t(sizeof(T));
        parallel_for((numbers + SLICE - 1) / SLICE, [&](int64_t slice) {
            for (int64_t i = slice * SLICE; i < std::min(numbers, (slice + 1) * SLICE); i += W) {
                V sum = load(reinterpret_cast<const T*>(ground.piece(0, turn)) + i);  // past the end of a piece there is memory too
                for (int64_t other = 1; other < ground.size(); other++) sum = sum + load(reinterpret_cast<const T*>(ground.piece(other, turn)) + i);
                if (i + W <= numbers) {
                    store(to + i, sum);
                } else {
                    T last[W];
                    store(last, sum);
                    std::memcpy(to + i, last, size_t(numbers - i) * sizeof(T));
                }
            }
        });
    });
}

// Everybody's `bytes`, one rank's after another's, in rank 0's `to`.
inline bool gather(Ground& ground, const void* from, void* to, int64_t bytes) {
    return ground.share(from, bytes, [&](int64_t first, int64_t length, uint32_t turn) {
        for (int64_t other = 0; ground.rank() == 0 && other < ground.size(); other++)
            std::memcpy(static_cast<char*>(to) + other * bytes + first, ground.piece(other, turn), size_t(length));
    });
}

}  // namespace pagoda

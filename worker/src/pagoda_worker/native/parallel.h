// One parallel loop on a small team of threads that forgives a busy machine.
//
// Pieces are taken one by one, and the loop is over when all pieces are done: a thread that the rest of the machine holds up costs the
// piece it holds, and one that has not even woken costs nothing. (OpenMP waits for every thread at the end of every loop; beside a router
// and a client on the same cores that made a step of 40 ms one of 70.) Idle threads spin for a moment, since the next loop of a step comes
// within microseconds, and then sleep.
#pragma once
#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace pagoda {

class Team {
  public:
    // The caller counts as one of them. Threads are started once and stay: a process has one engine, which says its number once.
    void use(unsigned wanted) {
        for (; started_ + 1 < wanted; started_++) {
            pthread_t thread;
            if (pthread_create(&thread, nullptr, [](void* team) -> void* { return static_cast<Team*>(team)->serve(), nullptr; }, this) != 0)
                break;
            pthread_detach(thread);
        }
        threads = wanted < started_ + 1 ? wanted : started_ + 1;
    }

    template <class Body>
    void run(int64_t count, const Body& body) {
        if (count <= 1 || threads <= 1 || count > MOST_PIECES || busy_.exchange(true, std::memory_order_acquire)) {
            for (int64_t i = 0; i < count; i++) body(i);
            return;
        }
        body_ = &body;
        call_ = [](const void* what, int64_t i) { (*static_cast<const Body*>(what))(i); };
        done_.store(0, std::memory_order_relaxed);
        generation_ = (generation_ + 1) & 0xFFFFFF;
        ticket_.store(uint64_t(generation_) << 40 | uint64_t(count) << 20, std::memory_order_release);
        epoch_.fetch_add(1);
        if (sleepers_.load() > 0) futex(FUTEX_WAKE_PRIVATE, int(threads - 1));
        take_pieces();
        for (int spins = 0; done_.load(std::memory_order_acquire) < count; spins++) {
            if (spins < 2000) {
                _mm_pause();
            } else {
                sched_yield();  // whoever holds the last piece may be waiting for this core
            }
        }
        busy_.store(false, std::memory_order_release);
    }

    unsigned threads = 1;

  private:
    static constexpr int64_t MOST_PIECES = (1 << 20) - 1;
    static constexpr int IDLE_SPINS = 4000;  // of `pause`: about 100 us

    // ticket: generation (24 bits), pieces (20), next piece (20). Whoever moves it by one owns that piece; until it is done the loop that
    // published body_ and call_ cannot end, so both are safe to read then, and only then.
    bool take_one() {
        uint64_t seen = ticket_.load(std::memory_order_acquire);
        for (;;) {
            int64_t next = seen & 0xFFFFF, count = seen >> 20 & 0xFFFFF;
            if (next >= count) return false;
            if (ticket_.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
                call_(body_, next);
                done_.fetch_add(1, std::memory_order_release);
                return true;
            }
        }
    }

    void take_pieces() {
        while (take_one()) {
        }
    }

    void serve() {
        for (int idle = 0;; idle++) {
            uint32_t epoch = epoch_.load();
            if (take_one()) {
                take_pieces();
                idle = 0;
            } else if (idle < IDLE_SPINS) {
                _mm_pause();
            } else {
                sleepers_.fetch_add(1);
                if (epoch_.load() == epoch) futex(FUTEX_WAIT_PRIVATE, int(epoch));
                sleepers_.fetch_sub(1);
                idle = 0;
            }
        }
    }

    void futex(int operation, int value) { syscall(SYS_futex, &epoch_, operation, value, nullptr, nullptr, 0); }

    std::atomic<uint64_t> ticket_{0};
    std::atomic<int64_t> done_{0};
    std::atomic<uint32_t> epoch_{0};
    std::atomic<int> sleepers_{0};
    std::atomic<bool> busy_{false};
    const void* body_ = nullptr;
    void (*call_)(const void*, int64_t) = nullptr;
    uint32_t generation_ = 0;
    unsigned started_ = 0;
};
extern Team team;

// Calls body(i) for each i in [0, count). Bodies must not touch each other's results.
template <class Body>
void parallel_for(int64_t count, const Body& body) {
    team.run(count, body);
}

// The same in runs of neighbours, at most `longest` long, for what a thread reads on through: body(begin, end). Short enough that all threads
// end together.
template <class Body>
void parallel_for_runs(int64_t count, int64_t longest, const Body& body) {
    const int64_t run = std::min(longest, std::max<int64_t>(count / (4 * team.threads), 1));
    team.run((count + run - 1) / run, [&](int64_t i) { body(i * run, std::min((i + 1) * run, count)); });
}

}  // namespace pagoda

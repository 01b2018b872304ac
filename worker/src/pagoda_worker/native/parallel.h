// One parallel loop, on the threads that torch already has.
//
// Linked against nothing: the process hands over the entry points of the OpenMP library that torch loaded (native/library.py), so that
// there is one pool of threads and not two that fight for the same cores. Without it loops run on the calling thread.
#pragma once
#include <atomic>
#include <cstdint>

namespace pagoda {

using GompParallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

struct Team {
    GompParallel run = nullptr;
    unsigned threads = 1;
};
extern Team team;

// Calls body(i) for each i in [0, count), pieces handed out as threads come for them: a core that the rest of the machine holds up costs
// one piece, not its whole share. Bodies must not touch each other's results.
template <class Body>
void parallel_for(int64_t count, const Body& body) {
    if (count <= 1 || team.threads <= 1 || team.run == nullptr) {
        for (int64_t i = 0; i < count; i++) body(i);
        return;
    }
    struct Shared {
        const Body* body;
        std::atomic<int64_t> next;
        int64_t count;
    } shared{&body, {0}, count};
    team.run(
        [](void* data) {
            auto& s = *static_cast<Shared*>(data);
            for (int64_t i; (i = s.next.fetch_add(1, std::memory_order_relaxed)) < s.count;) (*s.body)(i);
        },
        &shared, team.threads, 0);
}

}  // namespace pagoda

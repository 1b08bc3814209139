// Loops shared out among threads, the same way with every compiler.
//
// The threads are those of the OpenMP runtime that torch has loaded: a second runtime would fight with it for the cores.
// `#pragma omp parallel` asks for them only in code of g++; clang's calls another runtime. So they are asked for here, by
// the functions that g++'s code calls, which libgomp keeps for old programs' sake. (`#pragma omp simd` is no matter of
// threads, and every compiler's own.)
//
//     in_parallel([=](Team& team) {
//         ...                                            // each thread for itself
//         team.each(count, [&](i64 n) { ... });          // a run of equal length to each thread
//         team.wait();                                   // until all have done their part of what stands above
//         team.take(count, 16, [&](i64 n) { ... });      // 16 at a time to whoever is free
//     });                                                // all have ended
//     parallel_loop(count, 16, [=](i64 n) { ... });      // one such loop alone
//
// Capture by value ([=]) outside and by reference ([&]) inside: every thread works on its own copy of what was captured,
// which the compiler then keeps in registers.
#pragma once
#include <cstdint>
#include <cstdlib>

extern "C" {
void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags);
void GOMP_barrier();
int omp_get_thread_num();
int omp_get_num_threads();
int omp_get_max_threads();
}

class Team {
public:
    static constexpr int LOOPS = 4;  // in one region, at most, that are taken from
    struct alignas(64) Taken {
        int64_t next[LOOPS];
    };

    explicit Team(Taken* taken) : taken(taken), thread(omp_get_thread_num()), threads(omp_get_num_threads()) {}

    // body(n) for this thread's share of 0 <= n < count
    template <typename Body>
    void each(int64_t count, const Body& body) const {
        const int64_t share = count / threads, more = count % threads;
        const int64_t from = thread * share + (thread < more ? thread : more), to = from + share + (thread < more);
        for (int64_t n = from; n < to; n++) body(n);
    }

    // body(n) for `some` n at a time, until nobody has any left of 0 <= n < count
    template <typename Body>
    void take(int64_t count, int64_t some, const Body& body) {
        if (loop == LOOPS) std::abort();
        int64_t* next = &taken->next[loop++];
        for (;;) {
            const int64_t from = __atomic_fetch_add(next, some, __ATOMIC_RELAXED);
            if (from >= count) return;
            const int64_t to = from + some < count ? from + some : count;
            for (int64_t n = from; n < to; n++) body(n);
        }
    }

    void wait() const { GOMP_barrier(); }

private:
    Taken* taken;
    int thread, threads, loop = 0;
};

// body(team) in every thread
template <typename Body>
static inline void in_parallel(const Body& body) {
    struct Call {
        const Body* body;
        Team::Taken taken;
    } call{&body, {}};
    GOMP_parallel(
        [](void* data) {
            Body mine = *((Call*)data)->body;
            Team team(&((Call*)data)->taken);
            mine(team);
        },
        &call, 0, 0);
}

// body(n) for 0 <= n < count. What one thread would take alone, this one does: to wake the others takes longer.
template <typename Body>
static inline void parallel_loop(int64_t count, int64_t some, const Body& body) {
    if (count <= some) {
        for (int64_t n = 0; n < count; n++) body(n);
        return;
    }
    in_parallel([=](Team& team) { team.take(count, some, body); });
}

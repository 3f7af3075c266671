// Loops of independent tasks, one after another, that threads work off without parting in between.
#pragma once

#include <atomic>
#include <cstddef>
#include <thread>
#include <type_traits>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace tokexport {

// Who does a task: the number of the thread, and whether this is its first task of the loop.
struct Worker {
  size_t thread;
  bool is_first;
};

// A loop whose tasks may be done in any order. The body takes the number of a task and, if it wants
// to know, the worker.
template <typename Body>
struct Phase {
  size_t tasks;
  const Body& body;
};

template <typename Body>
Phase<Body> phase(size_t tasks, const Body& body) {
  return {tasks, body};
}

// A loop is divided into at most so many shares; each thread begins with one of them.
inline constexpr size_t kMaxShares = 16;

// How far the threads are in a loop. Each number is on a cache line of its own, which threads of other
// shares leave alone as long as they have work.
struct Progress {
  struct alignas(64) Count {
    std::atomic<size_t> count{0};
  };

  Count begun[kMaxShares];
  Count done;
};

// Lets the core's other thread run, and after a while the machine's other programs.
inline void spin_pause(size_t waited) {
  if (waited % 4096 == 4095) return std::this_thread::yield();
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Takes tasks of the loop until all are begun, its share first, and returns when all are done. It
// waits only for tasks that another thread is doing, which waits for nothing: so it ends whether one
// thread calls it or many, at once or one after another. Tasks may not throw, and so not allocate: the
// other threads would wait for a task that failed.
template <typename Body>
void run_phase(const Phase<Body>& phase, size_t thread, size_t share, size_t shares,
               Progress* progress) noexcept {
  std::atomic<size_t>& done = progress->done.count;
  // A runtime with fewer threads than it is asked for calls this again, when all is done.
  if (done.load(std::memory_order_acquire) >= phase.tasks) return;
  size_t did = 0;
  for (size_t i = 0; i < shares; ++i, share = share + 1 == shares ? 0 : share + 1) {
    const size_t first = phase.tasks * share / shares;
    const size_t count = phase.tasks * (share + 1) / shares - first;
    std::atomic<size_t>& begun = progress->begun[share].count;
    for (size_t task; (task = begun.fetch_add(1, std::memory_order_relaxed)) < count; ++did) {
      if constexpr (std::is_invocable_v<const Body&, size_t, Worker>)
        phase.body(first + task, Worker{thread, did == 0});
      else
        phase.body(first + task);
    }
  }
  done.fetch_add(did, std::memory_order_release);
  for (size_t waited = 0; done.load(std::memory_order_acquire) < phase.tasks; ++waited)
    spin_pause(waited);
}

}  // namespace tokexport

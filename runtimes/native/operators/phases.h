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

// A loop whose tasks may be done in any order. The body takes the number of a task and, if it wants
// to know, whether it is the thread's first.
template <typename Body>
struct Phase {
  size_t tasks;
  const Body& body;
};

template <typename Body>
Phase<Body> phase(size_t tasks, const Body& body) {
  return {tasks, body};
}

// Threads begin at so many places of a loop, each with the tasks that follow, as far as there are.
inline constexpr size_t kMostShares = 16;

// How far the threads are in a loop. Each number is on a line of its own, which threads of other
// shares leave alone as long as they have work.
struct Progress {
  struct alignas(64) Count {
    std::atomic<size_t> count{0};
  };

  Count begun[kMostShares];
  Count done;
};

// Lets the core's other thread run, and after a while the machine's other programs.
inline void pause_once(size_t waited) {
  if (waited % 4096 == 4095) return std::this_thread::yield();
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Takes tasks of the loop until all are begun, its share first, and returns when all are done. It
// waits for no task that is not being done: whoever begins one does it without waiting. So it ends
// whether one thread calls it or many, at once or one after another. A task that fails, for want of
// memory, ends the program: the others would wait for it for ever.
template <typename Body>
void work_off(const Phase<Body>& phase, size_t share, size_t shares, Progress* progress) noexcept {
  std::atomic<size_t>& done = progress->done.count;
  // A runtime with fewer threads than the machine has cores calls this once more often.
  if (done.load(std::memory_order_acquire) >= phase.tasks) return;
  size_t did = 0;
  for (size_t i = 0; i < shares; ++i, share = share + 1 == shares ? 0 : share + 1) {
    const size_t first = phase.tasks * share / shares;
    const size_t count = phase.tasks * (share + 1) / shares - first;
    std::atomic<size_t>& begun = progress->begun[share].count;
    for (size_t task; (task = begun.fetch_add(1, std::memory_order_relaxed)) < count; ++did) {
      if constexpr (std::is_invocable_v<const Body&, size_t, bool>)
        phase.body(first + task, did == 0);
      else
        phase.body(first + task);
    }
  }
  done.fetch_add(did, std::memory_order_release);
  for (size_t waited = 0; done.load(std::memory_order_acquire) < phase.tasks; ++waited)
    pause_once(waited);
}

}  // namespace tokexport

// Runs phases on threads that come at once, one after another and too late, and checks every task.
#include <atomic>
#include <cstdio>
#include <latch>
#include <numeric>
#include <thread>
#include <vector>

#include "operators/phases.h"

namespace {

using tokexport::phase;
using tokexport::Progress;
using tokexport::run_phase;
using tokexport::Worker;

// Each phase reads what the one before wrote; a task that is left out, done twice or done too early
// leaves another sum.
bool right(size_t threads, size_t shares, bool at_once, size_t wide, size_t narrow) {
  std::vector<size_t> first(wide);
  std::vector<size_t> second(narrow);
  size_t total = 0;
  std::atomic<size_t> began{0};  // threads that did a first task
  std::vector<size_t> did(threads);  // tasks of each thread, which no other writes
  const auto fill = [&](size_t i, Worker worker) {
    first[i] += i + 1;
    began += worker.is_first;
    ++did[worker.thread];
  };
  const auto sum = [&](size_t i) {
    second[i] += std::accumulate(first.begin(), first.end(), i);
  };
  const auto join = [&](size_t) { total += std::accumulate(second.begin(), second.end(), 0ul); };
  Progress progress[3];
  std::latch all_here(static_cast<std::ptrdiff_t>(threads));
  const auto work = [&](size_t thread) {
    if (at_once) all_here.arrive_and_wait();
    run_phase(phase(wide, fill), thread, thread * shares / threads, shares, &progress[0]);
    run_phase(phase(narrow, sum), thread, thread * shares / threads, shares, &progress[1]);
    run_phase(phase(1, join), thread, thread * shares / threads, shares, &progress[2]);
  };
  std::vector<std::thread> running;
  for (size_t thread = 0; thread < threads; ++thread) {
    running.emplace_back(work, thread);
    if (!at_once) running.back().join();
  }
  for (std::thread& one : running)
    if (one.joinable()) one.join();
  if (std::accumulate(did.begin(), did.end(), 0ul) != wide) return false;
  if (began > threads || (began == 0) != (wide == 0)) return false;
  return total == narrow * (wide * (wide + 1) / 2) + narrow * (narrow - 1) / 2;
}

}  // namespace

int main() {
  for (int round = 0; round < 15; ++round)
    for (size_t threads : {1, 2, 5, 20})
      for (bool at_once : {true, false})
        for (size_t wide : {0, 1, 3, 40})
          if (!right(threads, threads < 16 ? threads : 16, at_once, wide, 1 + wide / 3)) {
            std::printf("wrong: %zu threads, at once %d, %zu tasks\n", threads, at_once, wide);
            return 1;
          }
  return 0;
}

// A worker first spins for the next operation and sleeps only after a while without one. OpenMP's workers sleep at once
// if a process has more threads than there are processors, as servers do. Waking one takes longer than many operations.
//
// Compiled for any processor: the kernels of all instruction sets share these threads.

#include "pool.h"

#include <sched.h>

#include <atomic>
#include <mutex>
#include <thread>

namespace tandem {
namespace {

constexpr int kMaxSpins = 1 << 13;  // pauses, about 100 microseconds in all

void pause(int spins) {
  // Yield now and then: another thread may need this processor to make progress.
  if (spins % 1024 == 1023)
    sched_yield();
  else
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb");  // waits about as long as x86's pause
#endif
}

}  // namespace

struct Pool::State {
  std::mutex mutex;
  const std::function<void(long, long)>* work = nullptr;
  int num_threads = 0, num_workers = 0;
  std::atomic<unsigned> round{0};  // number of the current operation
  std::atomic<int> num_busy{0};    // workers that have not finished it

  void run_worker(long thread, unsigned number) {
    for (;;) {
      for (int spins = 0; spins < kMaxSpins && round.load(std::memory_order_acquire) == number; ++spins) pause(spins);
      round.wait(number, std::memory_order_acquire);
      ++number;
      if (thread < num_threads) (*work)(thread, num_threads);
      num_busy.fetch_sub(1, std::memory_order_release);
    }
  }
};

Pool::Pool() : state_(new State) {}

Pool& Pool::shared() {
  static Pool* const pool = new Pool;
  return *pool;
}

void Pool::run(int num_threads, const std::function<void(long, long)>& work) {
  if (num_threads <= 1) return work(0, 1);
  State& state = *state_;
  const std::lock_guard<std::mutex> lock(state.mutex);
  while (state.num_workers < num_threads - 1)
    std::thread(&State::run_worker, &state, ++state.num_workers, state.round.load()).detach();
  state.work = &work;
  state.num_threads = num_threads;
  state.num_busy.store(state.num_workers, std::memory_order_relaxed);
  state.round.fetch_add(1);
  state.round.notify_all();
  work(0, num_threads);
  for (int spins = 0; state.num_busy.load(std::memory_order_acquire) > 0; ++spins) pause(spins);
}

}  // namespace tandem

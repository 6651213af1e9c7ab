// Thread pool for the operations of a step, several hundred of which follow each other within microseconds.
//
// A worker first spins for the next operation and sleeps only after a while without one. OpenMP's workers sleep at once
// if a process has more threads than there are processors, as servers do. Waking one takes longer than many operations.
#pragma once

#include <immintrin.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <mutex>
#include <thread>

namespace tandem {

class Pool {
 public:
  // Returns the pool of this process. Never destroyed, because workers may sleep in it until the process exits.
  static Pool& shared() {
    static Pool* const pool = new Pool;
    return *pool;
  }

  // Calls work(thread, num_threads) on every thread and returns when all are done. The caller is thread 0.
  void run(int num_threads, const std::function<void(long, long)>& work) {
    if (num_threads <= 1) return work(0, 1);
    const std::lock_guard<std::mutex> lock(mutex_);
    while (num_workers_ < num_threads - 1) std::thread(&Pool::run_worker, this, ++num_workers_, round_.load()).detach();
    work_ = &work;
    num_threads_ = num_threads;
    num_busy_.store(num_workers_, std::memory_order_relaxed);
    round_.fetch_add(1);
    round_.notify_all();
    work(0, num_threads);
    for (int spins = 0; num_busy_.load(std::memory_order_acquire) > 0; ++spins) pause(spins);
  }

 private:
  static constexpr int kMaxSpins = 1 << 13;  // pauses, about 100 microseconds in all

  static void pause(int spins) {
    // Yield now and then: another thread may need this processor to make progress.
    spins % 1024 == 1023 ? static_cast<void>(sched_yield()) : _mm_pause();
  }

  void run_worker(long thread, unsigned round) {
    for (;;) {
      for (int spins = 0; spins < kMaxSpins && round_.load(std::memory_order_acquire) == round; ++spins) pause(spins);
      round_.wait(round, std::memory_order_acquire);
      ++round;
      if (thread < num_threads_) (*work_)(thread, num_threads_);
      num_busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::mutex mutex_;
  const std::function<void(long, long)>* work_ = nullptr;
  int num_threads_ = 0, num_workers_ = 0;
  std::atomic<unsigned> round_{0};  // number of the current operation
  std::atomic<int> num_busy_{0};    // workers that have not finished it
};

// Calls body(index) for 0 to count - 1. Neighbouring indices mostly run on the same thread.
template <class Body>
void split_evenly(int num_threads, long count, const Body& body) {
  Pool::shared().run(num_threads, [&](long thread, long threads) {
    for (long index = count * thread / threads; index < count * (thread + 1) / threads; ++index) body(index);
  });
}

}  // namespace tandem

// Threads for the pieces of a step, a few hundred of which follow each other within microseconds.
//
// A worker waits for the next piece awake, and sleeps only once none has come for a while. OpenMP's workers go to sleep
// at once where a process has more threads than there are processors, as a server has, and waking one takes longer
// than many a piece.
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
  // The threads of this process. Never destroyed: workers may sleep in it until the process is gone.
  static Pool& shared() {
    static Pool* const pool = new Pool;
    return *pool;
  }

  // Calls work(thread, num_threads) for every thread from 0 on, the caller being thread 0; returns when all are done.
  void run(int num_threads, const std::function<void(long, long)>& work) {
    if (num_threads <= 1) return work(0, 1);
    const std::lock_guard<std::mutex> alone(turn_);
    while (num_workers_ < num_threads - 1) std::thread(&Pool::live, this, ++num_workers_, round_.load()).detach();
    work_ = &work;
    num_threads_ = num_threads;
    num_busy_.store(num_workers_, std::memory_order_relaxed);
    round_.fetch_add(1);
    round_.notify_all();
    work(0, num_threads);
    for (int spins = 0; num_busy_.load(std::memory_order_acquire) > 0; ++spins) pause(spins);
  }

 private:
  static constexpr int kAwake = 1 << 13;  // pauses, together some 100 microseconds

  static void pause(int spins) {
    // Another thread may need this very processor to get on.
    spins % 1024 == 1023 ? static_cast<void>(sched_yield()) : _mm_pause();
  }

  void live(long thread, unsigned seen) {
    for (;;) {
      for (int spins = 0; spins < kAwake && round_.load(std::memory_order_acquire) == seen; ++spins) pause(spins);
      round_.wait(seen, std::memory_order_acquire);
      ++seen;
      if (thread < num_threads_) (*work_)(thread, num_threads_);
      num_busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::mutex turn_;
  const std::function<void(long, long)>* work_ = nullptr;
  int num_threads_ = 0, num_workers_ = 0;
  std::atomic<unsigned> round_{0};  // grows with every piece of work
  std::atomic<int> num_busy_{0};    // workers that have not ended this round
};

// Calls body(index) for 0 to count - 1, neighbours mostly on one thread.
template <class Body>
void split_evenly(int num_threads, long count, const Body& body) {
  Pool::shared().run(num_threads, [&](long thread, long threads) {
    for (long index = count * thread / threads; index < count * (thread + 1) / threads; ++index) body(index);
  });
}

}  // namespace tandem

// A thread first spins for the others and sleeps only after a while. OpenMP's workers sleep at once if a process has more
// threads than there are processors, as servers do. Waking one takes longer than many operations.
//
// No thread yields its processor: a process of the lowest priority (SCHED_IDLE) would get it for milliseconds. From a
// sleep the kernel wakes a thread at once. So this waits by futex: std::atomic::wait yields before it sleeps.
//
// Compiled for any processor: the kernels of all instruction sets share these threads.

#include "pool.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <mutex>
#include <thread>

namespace tandem {
namespace {

constexpr int kMaxSpins = 1 << 13;  // pauses, about 100 microseconds in all

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");  // waits about as long as x86's pause
#endif
}

// A number that threads wait for.
class Signal {
 public:
  unsigned load() const { return value_.load(std::memory_order_acquire); }

  void store(unsigned value) { value_.store(value, std::memory_order_relaxed); }

  // Adds and returns the sum. Threads that sleep go on sleeping until `wake`.
  unsigned add(unsigned change) { return value_.fetch_add(change) + change; }

  // Returns once the number is not `value`.
  void wait_while(unsigned value) {
    for (int spins = 0; spins < kMaxSpins; ++spins) {
      if (load() != value) return;
      pause();
    }
    num_sleeping_.fetch_add(1);
    while (value_.load() == value) syscall(SYS_futex, &value_, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
    num_sleeping_.fetch_sub(1);
  }

  void wake() {
    if (num_sleeping_.load() > 0) syscall(SYS_futex, &value_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
  }

 private:
  std::atomic<unsigned> value_{0};
  std::atomic<int> num_sleeping_{0};
};

// Moves the calling thread to another processor.
void leave_processor(int processor) {
  cpu_set_t allowed, others;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  others = allowed;
  CPU_CLR(processor, &others);
  if (sched_setaffinity(0, sizeof others, &others) == 0) sched_setaffinity(0, sizeof allowed, &allowed);
}

}  // namespace

struct Pool::State {
  std::mutex mutex;
  const std::function<void(long, long)>* work = nullptr;
  int num_threads = 0, num_workers = 0;
  std::atomic<int> waiting{-1};  // processor of the caller, once it has done its own work
  Signal round;  // number of the current operation
  Signal busy;   // workers that have not finished it

  void run_worker(long thread, unsigned number) {
    for (;;) {
      round.wait_while(number);
      ++number;
      // The caller is done before this thread has begun. If both are on one processor, they go on taking turns there.
      // The kernel sees one busy thread at a time, and a busy process elsewhere, however low its priority.
      if (const int processor = sched_getcpu(); thread < num_threads && processor == waiting.load()) leave_processor(processor);
      if (thread < num_threads) (*work)(thread, num_threads);
      if (busy.add(-1) == 0) busy.wake();
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
  state.busy.store(state.num_workers);
  state.waiting.store(-1);
  state.round.add(1);
  state.round.wake();
  work(0, num_threads);
  state.waiting.store(sched_getcpu());
  while (const unsigned num_busy = state.busy.load()) state.busy.wait_while(num_busy);
}

}  // namespace tandem

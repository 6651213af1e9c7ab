// Thread pool for the operations of a step, several hundred of which follow each other within microseconds.
#pragma once

#include <functional>

namespace tandem {

class Pool {
 public:
  // Returns the pool of this process. Never destroyed, because workers may sleep in it until the process exits.
  static Pool& shared();

  // Calls work(thread, num_threads) on every thread and returns when all are done. The caller is thread 0.
  void run(int num_threads, const std::function<void(long, long)>& work);

 private:
  struct State;

  Pool();

  State* const state_;
};

// Calls body(index) for 0 to count - 1. Neighbouring indices mostly run on the same thread.
template <class Body>
void split_evenly(int num_threads, long count, const Body& body) {
  Pool::shared().run(num_threads, [&](long thread, long threads) {
    for (long index = count * thread / threads; index < count * (thread + 1) / threads; ++index) body(index);
  });
}

}  // namespace tandem

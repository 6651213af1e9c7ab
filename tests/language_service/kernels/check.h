// What the checks of one instruction set share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "kernels.h"
#include "panel.h"

using tandem::bf16;
using Matrix = std::vector<bf16>;

inline std::mt19937 generator(1);
extern bool failed;

inline double wide(bf16 x) {
  const std::uint32_t bits = std::uint32_t{x} << 16;
  float made;
  std::memcpy(&made, &bits, sizeof made);
  return made;
}

inline Matrix random(long count) {
  std::normal_distribution<float> normal;
  Matrix made(count);
  for (bf16& x : made) {
    const float value = normal(generator);
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    x = static_cast<bf16>(bits >> 16);
  }
  return made;
}

// Prints the first difference.
inline void expect(bool fine, const char* name, double found, double expected) {
  if (!fine && !failed) std::printf("%s: %g instead of %g\n", name, found, expected);
  failed |= !fine;
}

void check_low_bit(int num_threads);

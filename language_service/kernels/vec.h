// Vectors of 16 float32 numbers, and their exchange with bfloat16: computed in float32, rounded once when stored.
//
// The kernels are written over these names alone. Each instruction set has a header of its own.
#pragma once

#include <cstdint>

namespace tandem {

using bf16 = std::uint16_t;

constexpr long kLanes = 16;

}  // namespace tandem

#if defined(__AVX512F__)
#include "vec_avx512.h"
#elif defined(__AVX2__)
#include "vec_avx2.h"
#elif defined(__ARM_NEON)
#include "vec_neon.h"
#else
#error "these kernels need AVX2 or NEON"
#endif

namespace tandem::inline TANDEM_SET {

// Fetches a cache line into the second-level cache.
inline void prefetch(const void* address) { __builtin_prefetch(address, 0, 2); }

// Returns 2^x within two units in the last place. Very small inputs give 0, very large ones inf, and NaN gives NaN.
inline Floats exp2(Floats x) {
  const Floats limited = limit_exponent(x), whole = round_to_even(limited);
  const Floats rest = sub(limited, whole);  // in [-1/2, 1/2]
  // The Taylor series of e^(ln 2 * rest). The first omitted term is below 2^-27.
  constexpr float kFactors[] = {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f,
                                2.4022651e-1f, 6.9314718e-1f, 1.0f};
  Floats sum = splat(1.5252734e-5f);
  for (const float factor : kFactors) sum = fmadd(sum, rest, splat(factor));
  return scale_by_power(sum, whole);
}

}  // namespace tandem::inline TANDEM_SET

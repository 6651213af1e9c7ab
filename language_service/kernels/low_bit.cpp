// y = x W^T for weights of 8 or 4 bits, see low_bit.h.

#include "low_bit.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BF16__)
#include "low_bit_avx512.h"
#elif defined(__AVX2__)
#define TANDEM_UNPACKS_FOR_MANY_ROWS
#include "low_bit_avx2.h"
#include "low_bit_many_avx2.h"
#else
#include "low_bit_plain.h"
#endif
#if defined(TANDEM_TILES) || defined(__ARM_FEATURE_MATMUL_INT8)
#include "low_bit_products.h"
#endif

using namespace tandem;

extern "C" void ENTRY(low_bit)(const LowBit* weight, const bf16* x, const bf16* residual, void* out, long num_rows,
                               int float_out, int num_threads) {
  const LowBitRows rows{x, residual, out, num_rows, float_out != 0};
#if defined(TANDEM_TILES) || defined(__ARM_FEATURE_MATMUL_INT8)
  if (multiply_by_products(*weight, rows, num_threads)) return;
#endif
#if defined(TANDEM_UNPACKS_FOR_MANY_ROWS)
  // The same bits as those of a few rows, sooner.
  if (weight->scheme == kW4A16 && num_rows >= kManyRows) return multiply_many_w4a16(*weight, rows, num_threads);
#endif
  switch (weight->scheme) {
    case kW8A8: return multiply_w8a8<LowBitProducts>(*weight, rows, num_threads);
    case kW4A16:
      return multiply_w4a16<LowBitProducts::kTileRows>(*weight, rows, LowBitProducts::kStoredZero, num_threads,
                                                       [] { return LowBitProducts::w4a16; });
    default: return multiply_w4a8<LowBitProducts>(*weight, rows, num_threads);
  }
}

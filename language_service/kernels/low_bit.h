// Products with weights of 8 or 4 bits, packed in panels of 64 columns (64 rows of a weight [N, K]).
//
// A panel is read once, front to back. Its form depends on the scheme:
//
// w8a8   [K/4][64][4] int8, K rounded up to a multiple of 4 with zeros, then float scales[64], int32 sums[64] of the
//        columns. Four neighbours along K lie side by side, because one instruction multiplies them.
// w4a16  for each group along K: [group/2][32] 16-bit words, then scales[64], then int8 zeros[64] if there are any.
//        Bits 4j to 4j + 3 of word 2c + p are input p of the pair of column 16j + c, plus 8.
// w4a8   for each group along K: [group/4][2][16][4] bytes, then as above. The low half of a byte is an input of column
//        32h + c, plus 8. The high half belongs to column 32h + 16 + c.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace tandem::inline TANDEM_SET {

enum Scheme : long { kW8A8, kW4A16, kW4A8 };

// A packed weight. A number is (value - zero) * scale.
struct LowBit {
  const std::uint8_t* panels;
  const bf16* bias;  // [num_columns] or null
  long scheme;
  long group;        // inputs with a common scale, at most 128 and a multiple of 32, for 4 bits
  long scale_bytes;  // 4 for float32 and 2 for bfloat16, for 4 bits
  long has_zeros;    // for 4 bits
  long width, num_columns;  // K and N
};

// The rows to multiply by a weight.
struct LowBitRows {
  const bf16* x;         // [num_rows][width]
  const bf16* residual;  // [num_rows][num_columns] or null, added to the result
  void* out;             // [num_rows][num_columns], bfloat16 or float32
  long num_rows;
  bool float_out;
};

}  // namespace tandem::inline TANDEM_SET

// Multiplies x[num_rows][K] by a packed weight. The residual may be null, the result is bfloat16 or float32.
extern "C" void ENTRY(low_bit)(const tandem::LowBit* weight, const tandem::bf16* x, const tandem::bf16* residual,
                               void* out, long num_rows, int float_out, int num_threads);

// Products with weights of 8 and 4 bits by the loops of bfloat16 (product.h), where their instructions multiply bytes too.
//
// A panel of bytes is read like one of bfloat16: four bytes take the place of two numbers.
#pragma once

#include "low_bit_unpacked.h"

namespace tandem::inline TANDEM_SET {
namespace {

// Returns rounded rows as elements of two bytes. Products only copy them.
const bf16* elements_of(const Rounded& rounded) { return reinterpret_cast<const bf16*>(rounded.values.get()); }

// Whether rounded rows fill the tiles of AMX. Instructions of Arm take any row.
#if defined(TANDEM_TILES)
bool fits(long stride) { return stride % 64 == 0; }
#else
bool fits(long) { return true; }
#endif

// Writes a group of w4a8 as [group / 4][64][4] bytes of 0 to 15.
void unpack_to_bytes(const Group<std::int32_t>& group, bf16* to) {
  auto* bytes = reinterpret_cast<std::uint8_t*>(to);
  for (long line = 0; line < group.size / 2; ++line, bytes += 2 * kCacheLine) {
    const std::uint8_t* from = group.weights + line * kCacheLine;
    prefetch(from + kAheadBytes);
    for (long i = 0; i < kCacheLine; ++i) bytes[i] = from[i] & 15;
    for (long i = 0; i < kCacheLine; ++i) bytes[kCacheLine + i] = from[i] >> 4;
  }
}

void multiply_w4a8_unpacked(const LowBit& weight, const LowBitRows& rows, int num_threads) {
  const Rounded rounded = round_rows(rows, weight.width, 0, num_threads);
  const auto x_sums = sum_groups<std::int32_t>(weight, rounded.values.get(), rows.num_rows, num_threads);
  const GroupedRows<std::int32_t> x{elements_of(rounded), weight.width / 2, x_sums.get(), rounded.scales.get(), 8};
  multiply_unpacked(weight, rows, x, num_threads, unpack_to_bytes);
}

void multiply_w8a8_as_it_is(const LowBit& weight, const LowBitRows& rows, int num_threads) {
  const Rounded rounded = round_rows(rows, weight.width, 0, num_threads);
  const long quads = rounded.stride / 4, num_panels = (weight.num_columns + kColumns - 1) / kColumns;
  const auto work = [&](long thread, long threads, const Rows& from) {
    alignas(64) std::int32_t sums[kRows * kColumns];
    const Products products(rows.num_rows);
    for (long index = num_panels * thread / threads; index < num_panels * (thread + 1) / threads; ++index) {
      const BytePanel panel(weight, index, quads);
      const auto* columns = reinterpret_cast<const bf16*>(panel.columns);
      for (long first = 0; first < rows.num_rows; first += products.block_rows()) {
        const long num_rows = std::min(products.block_rows(), rows.num_rows - first);
        std::fill_n(sums, products.padded(num_rows) * kColumns, 0);
        for (long quad = 0; quad < quads; quad += kPiece)
          multiply_and_prefetch(from.from(first, quad), num_rows, columns + quad * kPairStride,
                                std::min(kPiece, quads - quad), sums);
        finish_w8a8(weight, rows, first, num_rows, index, sums, panel.scales, rounded.scales.get());
      }
    }
  };
  run_with_rows(elements_of(rounded), rows.num_rows, rounded.stride / 2, num_threads, work);
}

// Multiplies by the instructions of product.h. Returns false if they do not take such rows.
bool multiply_by_products(const LowBit& weight, const LowBitRows& rows, int num_threads) {
  if (weight.scheme != kW4A16 && !fits((weight.width + 3) / 4 * 4)) return false;
  switch (weight.scheme) {
    case kW8A8: multiply_w8a8_as_it_is(weight, rows, num_threads); break;
    case kW4A16: multiply_w4a16_unpacked(weight, rows, num_threads); break;
    default: multiply_w4a8_unpacked(weight, rows, num_threads);
  }
  return true;
}

}  // namespace
}  // namespace tandem::inline TANDEM_SET

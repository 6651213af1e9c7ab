// Products with weights of 8 and 4 bits by the loops of bfloat16 (product.h), where their instructions multiply bytes too.
//
// A panel of bytes is read like one of bfloat16: four bytes take the place of two numbers. A group of 4 bits is unpacked
// in the first-level cache, once for all rows of a block.
#pragma once

#include "low_bit_unpack.h"
#include "product.h"

namespace tandem::inline TANDEM_SET {
namespace {

constexpr long kMaxGroup = 128;

// Rows for a weight of 4 bits. Two bytes are an element.
template <class Sum>
struct GroupedRows {
  const bf16* x;        // [num_rows][width]
  long width;           // in elements
  const Sum* x_sums;    // [num_rows][groups] or null
  const float* scales;  // [num_rows] or null
  Sum stored_zero;
};

// Returns rounded rows as elements of two bytes. Products only copy them.
const bf16* elements_of(const Rounded& rounded) { return reinterpret_cast<const bf16*>(rounded.values.get()); }

// Adds one group, multiplied by its scales, to all sums of a block.
template <class Sum>
void add_group(const Group<Sum>& group, const bf16* unpacked, const GroupedRows<Sum>& x, long first, long groups,
               long index, const Products& products, const Rows& rows, long num_rows, float* sums) {
  const long pairs = x.width / 2 / groups;
  alignas(64) Sum group_sums[kRows * kColumns];
  for (long row = 0; row < num_rows; ++row)
    for (long i = 0; i < kColumns; ++i)
      group_sums[row * kColumns + i] = x.x_sums ? -x.x_sums[(first + row) * groups + index] * group.zeros[i] : Sum{0};
  std::fill(group_sums + num_rows * kColumns, group_sums + products.padded(num_rows) * kColumns, Sum{0});
  multiply(rows.from(first, index * pairs), num_rows, unpacked, pairs, group_sums);
  for (long row = 0; row < num_rows; ++row)
    for (long i = 0; i < kColumns; ++i)
      sums[row * kColumns + i] += static_cast<float>(group_sums[row * kColumns + i]) * group.scales[i];
}

// Multiplies by a weight of 4 bits. unpack(group, to) writes a piece of a panel.
template <class Sum, class Unpack>
void multiply_unpacked(const LowBit& weight, const LowBitRows& rows, const GroupedRows<Sum>& x, int num_threads,
                       const Unpack& unpack) {
  const long groups = weight.width / weight.group, group_bytes = Group<Sum>::bytes(weight);
  const long num_panels = (weight.num_columns + kColumns - 1) / kColumns, pairs = x.width / 2 / groups;
  run_with_rows(x.x, rows.num_rows, x.width, num_threads, [&](long thread, long threads, const Rows& from) {
    alignas(64) bf16 unpacked[kMaxGroup * kColumns];
    alignas(64) float sums[kRows * kColumns];
    const Products products(rows.num_rows, std::min(16L, pairs));
    for (long panel = num_panels * thread / threads; panel < num_panels * (thread + 1) / threads; ++panel)
      for (long first = 0; first < rows.num_rows; first += products.block_rows()) {
        const long num_rows = std::min(products.block_rows(), rows.num_rows - first);
        std::fill_n(sums, num_rows * kColumns, 0.0f);
        for (long index = 0; index < groups; ++index) {
          const Group<Sum> group(weight, weight.panels + (panel * groups + index) * group_bytes, x.stored_zero);
          unpack(group, unpacked);
          add_group(group, unpacked, x, first, groups, index, products, from, num_rows, sums);
        }
        for (long row = 0; row < num_rows; ++row)
          finish(weight, rows, first + row, panel, sums + row * kColumns, x.scales ? x.scales[first + row] : 1.0f);
      }
  });
}

void multiply_w4a16_unpacked(const LowBit& weight, const LowBitRows& rows, int num_threads) {
  std::unique_ptr<float[]> x_sums;
  if (weight.has_zeros) x_sums = sum_groups<float>(weight, rows.x, rows.num_rows, num_threads);
  const GroupedRows<float> x{rows.x, weight.width, x_sums.get(), nullptr, 0};
  multiply_unpacked(weight, rows, x, num_threads, unpack_to_bf16);
}

// Whether rounded rows fill the tiles of AMX. Instructions of Arm take any row.
#if defined(TANDEM_TILES)
bool fits(long stride) { return stride % 64 == 0; }
#else
bool fits(long) { return true; }
#endif

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
